// SPDX-License-Identifier: Apache-2.0
#include "candidates.h"

#include "parallel.h"

namespace fuseo1 {
namespace {

constexpr int64_t kBins = 4096;       // a histogram of so many bins stays in the L1 cache while it is filled
constexpr int64_t kFewEnough = 8192;  // candidates few enough to be sorted

// A candidate in the range where the selection ends.
struct Contender {
  uint32_t score;
  uint32_t list;
  int64_t index;
  const uint32_t* record;

  bool operator<(const Contender& other) const {
    return score != other.score ? score > other.score : index < other.index;
  }
};

struct Range {
  int64_t low, high;
};

using Lists = std::vector<const Candidates*>;

// Finds where the `wanted` lowest keys end: narrows `range` until few enough candidates have a key in it, or it is a
// single key. Returns how many of those in it are selected; *inside is how many there are.
template <class Key>
int64_t narrow(const Lists& lists, const Key& key, int64_t wanted, Range* range, int64_t* inside) {
  Pages<int64_t> bins;
  do {
    int shift = 0;
    while ((range->high - range->low) >> shift >= kBins) ++shift;
    bins.assign(lists.size() * kBins, 0);
    in_parallel(static_cast<int64_t>(lists.size()), [&](int64_t i) {
      const Range within = *range;
      lists[i]->for_each([&, mine = &bins[i * kBins]](const uint32_t* record) {
        const int64_t k = key(record);
        if (k >= within.low && k <= within.high) ++mine[(k - within.low) >> shift];
      });
    });
    for (size_t b = kBins; b < bins.size(); ++b) bins[b % kBins] += bins[b];
    int64_t bin = 0;
    for (; bins[bin] < wanted; ++bin) wanted -= bins[bin];
    range->low += bin << shift;
    range->high = std::min(range->high, range->low + (int64_t{1} << shift) - 1);
    *inside = bins[bin];
  } while (range->low < range->high && *inside > kFewEnough);
  return wanted;
}

}  // namespace

int64_t selection_bytes(int64_t lists) {
  return lists * kBins * static_cast<int64_t>(sizeof(int64_t)) + kFewEnough * static_cast<int64_t>(sizeof(Contender));
}

Cut select_candidates(const Lists& lists, const std::vector<Totals*>& totals, int64_t wanted, Bracket range,
                      int64_t numel) {
  const auto by_score = [](const uint32_t* record) { return -static_cast<int64_t>(Candidates::score(record)); };
  Range scores = {-static_cast<int64_t>(range.high), -static_cast<int64_t>(range.low)};
  int64_t inside;
  int64_t rest = narrow(lists, by_score, wanted, &scores, &inside);

  // Very many have one score: those of the lowest indices are selected.
  const bool tied = inside > kFewEnough, splits_tied = rest < inside;
  Range places = {0, numel - 1};
  if (tied) {
    const auto by_index = [&](const uint32_t* record) {
      return by_score(record) == scores.low ? Candidates::index(record) : -1;
    };
    rest = narrow(lists, by_index, rest, &places, &inside);
  }

  // The threads must not allocate, which may fail. The order of contenders does not matter.
  Pages<Contender> contenders(static_cast<size_t>(inside));
  std::atomic<int64_t> found{0};
  in_parallel(static_cast<int64_t>(lists.size()), [&](int64_t i) {
    lists[i]->for_each([&, mine = totals[i]](const uint32_t* record) {
      const int64_t score = by_score(record);
      if (score > scores.high) return;
      const int64_t index = Candidates::index(record);
      if (score < scores.low || index < places.low) {
        lists[i]->add_energy(record, mine);
      } else if (index <= places.high) {
        contenders[found.fetch_add(1, std::memory_order_relaxed)] = {Candidates::score(record),
                                                                     static_cast<uint32_t>(i), index, record};
      }
    });
  });

  const auto last = contenders.begin() + (rest - 1);
  std::nth_element(contenders.begin(), last, contenders.end());
  for (auto c = contenders.begin(); c <= last; ++c) lists[c->list]->add_energy(c->record, totals[c->list]);
  const bool splits_ties =
      tied ? splits_tied
           : std::any_of(last + 1, contenders.end(), [&](const Contender& c) { return c.score == last->score; });
  return {last->score, last->index, splits_ties};
}

}  // namespace fuseo1
