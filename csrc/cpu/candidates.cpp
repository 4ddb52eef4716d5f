// SPDX-License-Identifier: Apache-2.0
#include "candidates.h"

#include "parallel.h"

namespace fuseo1 {
namespace {

constexpr uint32_t kBins = 4096;      // a histogram of this many stays in the L1 cache while it is filled
constexpr int64_t kFewEnough = 8192;  // to be sorted; and the stretches of indices in which equal scores are counted

// A candidate in the range where the selection ends.
struct Contender {
  uint32_t score;
  uint32_t list;
  int64_t index, place;

  bool operator<(const Contender& other) const {
    return score != other.score ? score > other.score : index < other.index;
  }
};

using Lists = std::vector<const Candidates*>;

// Counts what bin(list, c) gives for every candidate; negative is not counted.
template <class Bin>
std::vector<int64_t> histogram(const Lists& lists, int64_t bins, const Bin& bin) {
  std::vector<std::vector<int64_t>> parts(lists.size(), std::vector<int64_t>(bins));
  in_parallel(static_cast<int64_t>(lists.size()), [&](int64_t i) {
    for (int64_t c = 0, n = lists[i]->count(); c < n; ++c) {
      const int64_t b = bin(*lists[i], c);
      if (b >= 0) ++parts[i][b];
    }
  });
  for (size_t i = 1; i < parts.size(); ++i) {
    for (int64_t b = 0; b < bins; ++b) parts[0][b] += parts[i][b];
  }
  return parts[0];
}

// Narrows `range` until few enough candidates are in it, or it is one score. Returns how many of those in it are
// selected; *inside says how many there are.
int64_t narrow(const Lists& lists, int64_t wanted, Bracket* range, int64_t* inside) {
  for (;;) {
    int shift = 0;
    while ((range->high - range->low) >> shift >= kBins) ++shift;
    const auto bins = histogram(lists, kBins, [&](const Candidates& list, int64_t c) -> int64_t {
      const uint32_t score = list.score(c);
      if (score < range->low || score > range->high) return -1;
      return (score - range->low) >> shift;
    });
    uint32_t bin = kBins - 1;
    for (; bins[bin] < wanted; --bin) wanted -= bins[bin];
    range->low += bin << shift;
    range->high = std::min(range->high, range->low + ((1u << shift) - 1));
    *inside = bins[bin];
    if (shift == 0 || *inside <= kFewEnough) return wanted;
  }
}

}  // namespace

Cut select_candidates(const Lists& lists, const std::vector<Totals*>& totals, int64_t wanted, Bracket range) {
  int64_t inside;
  int64_t rest = narrow(lists, wanted, &range, &inside);
  const bool all_inside = rest == inside;

  // Very many of one score: all before some stretch of indices are selected, and only that stretch's are sorted.
  int64_t cut = -1, contending = inside;
  if (inside > kFewEnough) {
    int64_t last = 0;
    for (const Candidates* list : lists) last = std::max(last, list->last_index());
    const auto stretches = histogram(lists, last / kFewEnough + 1, [&](const Candidates& list, int64_t c) -> int64_t {
      return list.score(c) == range.low ? list.index(c) / kFewEnough : -1;
    });
    for (cut = 0; stretches[cut] < rest; ++cut) rest -= stretches[cut];
    contending = stretches[cut];
  }

  // Room for all in any list: nothing is to be allocated, and so to fail, in the threads.
  std::vector<std::vector<Contender>> found(lists.size());
  for (auto& part : found) part.reserve(static_cast<size_t>(contending));
  in_parallel(static_cast<int64_t>(lists.size()), [&](int64_t i) {
    const Candidates& list = *lists[i];
    for (int64_t c = 0, n = list.count(); c < n; ++c) {
      const uint32_t score = list.score(c);
      if (score < range.low) continue;
      const int64_t index = list.index(c);
      if (score > range.high || index / kFewEnough < cut) {
        list.add_energy(c, totals[i]);
      } else if (cut < 0 || index / kFewEnough == cut) {
        found[i].push_back({score, static_cast<uint32_t>(i), index, c});
      }
    }
  });

  std::vector<Contender> contenders;
  for (const auto& part : found) contenders.insert(contenders.end(), part.begin(), part.end());
  const auto last = contenders.begin() + (rest - 1);
  std::nth_element(contenders.begin(), last, contenders.end());
  for (auto c = contenders.begin(); c <= last; ++c) lists[c->list]->add_energy(c->place, totals[c->list]);
  const bool splits_ties =
      cut < 0 ? std::any_of(
                    last + 1, contenders.end(), [&](const Contender& c) { return c.score == last->score; })
              : !all_inside;
  return {last->score, last->index, splits_ties};
}

}  // namespace fuseo1
