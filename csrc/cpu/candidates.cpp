// SPDX-License-Identifier: Apache-2.0
#include "candidates.h"

namespace fuseo1 {
namespace {

template <class Visit>
void each(const std::vector<const Candidates*>& lists, const Visit& visit) {
  for (const Candidates* list : lists) {
    for (int64_t c = 0, n = list->count(); c < n; ++c) visit(*list, c);
  }
}

}  // namespace

Cut select_candidates(const std::vector<const Candidates*>& lists, int64_t wanted, Bracket within, Totals* totals) {
  // A histogram over the bracket leaves one bin to sort: small enough to stay in the L1 cache while it is filled.
  constexpr uint32_t kBins = 4096;
  int shift = 0;
  while ((within.high - within.low) >> shift >= kBins) ++shift;
  const auto bin_of = [&](uint32_t score) { return (score - within.low) >> shift; };
  std::vector<int64_t> histogram(kBins);
  each(lists, [&](const Candidates& list, int64_t c) { ++histogram[bin_of(list.score(c))]; });
  uint32_t bin = kBins - 1;
  int64_t rest = wanted;
  for (; histogram[bin] < rest; --bin) rest -= histogram[bin];

  struct Contender {
    uint32_t score;
    int64_t index, place;
    const Candidates* list;
  };
  std::vector<Contender> contenders;
  contenders.reserve(static_cast<size_t>(histogram[bin]));
  each(lists, [&](const Candidates& list, int64_t c) {
    const uint32_t score = list.score(c), b = bin_of(score);
    if (b > bin) list.add_energy(c, totals);
    if (b == bin) contenders.push_back({score, list.index(c), c, &list});
  });
  const auto better = [](const Contender& a, const Contender& b) {
    return a.score != b.score ? a.score > b.score : a.index < b.index;
  };
  const auto last = contenders.begin() + (rest - 1);
  std::nth_element(contenders.begin(), last, contenders.end(), better);
  for (auto c = contenders.begin(); c <= last; ++c) c->list->add_energy(c->place, totals);
  const bool splits_ties =
      std::any_of(last + 1, contenders.end(), [&](const Contender& c) { return c.score == last->score; });
  return {last->score, last->index, splits_ties};
}

}  // namespace fuseo1
