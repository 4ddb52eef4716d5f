// SPDX-License-Identifier: Apache-2.0
#include "marks.h"

#include "parallel.h"

namespace fuseo1 {
namespace {

constexpr int64_t kBins = 4096;  // a histogram of this many stays in the L1 cache while it is filled

using Lists = std::vector<const Marks*>;

struct Range {
  int64_t low, high;
};

// Narrows keys in [*low, *high] to the one at which `wanted` are reached, counted from the lowest up; takes those
// before it off `wanted`. fill(list, range, add) calls add(key, how many) for all of a list whose key may be in the
// range. Returns how many have that key.
template <class Fill>
int64_t narrow(const Lists& lists, const Fill& fill, int64_t* wanted, int64_t* low, int64_t* high) {
  Pages<int64_t> bins;
  int64_t inside = 0;
  do {
    int shift = 0;
    while ((*high - *low) >> shift >= kBins) ++shift;
    bins.assign(lists.size() * kBins, 0);
    in_parallel(static_cast<int64_t>(lists.size()), [&](int64_t i) {
      const int64_t from = *low;
      const uint64_t span = static_cast<uint64_t>(*high - from);
      int64_t* const mine = &bins[i * kBins];
      fill(*lists[i], Range{*low, *high}, [=](int64_t key, int64_t count) {
        const uint64_t at = static_cast<uint64_t>(key - from);
        if (at <= span) mine[at >> shift] += count;
      });
    });
    for (size_t b = kBins; b < bins.size(); ++b) bins[b % kBins] += bins[b];
    int64_t bin = 0;
    for (; bins[bin] < *wanted; ++bin) *wanted -= bins[bin];
    *low += bin << shift;
    *high = std::min(*high, *low + (int64_t{1} << shift) - 1);
    inside = bins[bin];
  } while (*low < *high);
  return inside;
}

// How many of a block's `n` candidates have the score, which is not 0.
int64_t count_equal(const uint32_t* scores, int64_t n, uint32_t to) {
  uint32_t equal = 0;
  for (int64_t j = 0; j < n; j += kMarkPad) {
    for (int c = 0; c < kMarkPad; ++c) equal += scores[j + c] == to;
  }
  return equal;
}

int64_t count_above(const uint32_t* scores, int64_t n, uint32_t limit) {
  int32_t above = 0;  // as signed integers, which SSE2 compares
  for (int64_t j = 0; j < n; j += kMarkPad) {
    for (int c = 0; c < kMarkPad; ++c) above += static_cast<int32_t>(scores[j + c]) > static_cast<int32_t>(limit);
  }
  return above;
}

// The last selected score, of which `wanted` out of `count` are selected.
struct Ties {
  uint32_t score;
  int64_t wanted, count;
};

// The likeliest is tried first: counting one score is fast, where a histogram of masses would have to wait for every
// increment of one bin.
Ties find_threshold(const Lists& lists, int64_t wanted, Bracket range, uint32_t likeliest) {
  const uint32_t guess = std::clamp(likeliest, range.low, range.high);
  std::atomic<int64_t> above{0}, equal{0};
  in_parallel(static_cast<int64_t>(lists.size()), [&](int64_t i) {
    int64_t my_above = 0, my_equal = 0;
    lists[i]->for_each(false, [&](int64_t, int64_t n, const uint32_t*, const uint32_t* scores) {
      my_above += count_above(scores, n, guess);
      my_equal += count_equal(scores, n, guess);
    });
    above += my_above, equal += my_equal;
  });
  if (above < wanted && wanted <= above + equal) return {guess, wanted - above, equal};

  int64_t low = -static_cast<int64_t>(range.high), high = -static_cast<int64_t>(range.low);
  const auto by_score = [](const Marks& list, Range, const auto& add) {
    list.for_each(false, [&](int64_t, int64_t n, const uint32_t*, const uint32_t* scores) {
      for (int64_t j = 0; j < n; ++j) add(-static_cast<int64_t>(scores[j]), 1);
    });
  };
  const int64_t ties = narrow(lists, by_score, &wanted, &low, &high);
  return {static_cast<uint32_t>(-low), wanted, ties};
}

// The index of the `nth` (from 1) of a block's candidates that have the score.
int64_t nth_tie(int64_t block, const uint32_t* marks, const uint32_t* scores, bool single, uint32_t score,
                int64_t nth) {
  for (int64_t j = 0;; ++j) {
    if (!(marks[j / 32] >> (j % 32) & 1)) continue;
    if ((single || *scores++ == score) && --nth == 0) return block + j;
  }
}

}  // namespace

int64_t mark_selection_bytes(int64_t lists) { return lists * kBins * static_cast<int64_t>(sizeof(int64_t)); }

Cut select_marks(const Lists& lists, int64_t count, int64_t wanted, Bracket range, uint32_t likeliest, int64_t numel) {
  const bool single = range.low == range.high;
  Ties ties = {range.low, wanted, count};
  if (!single) ties = find_threshold(lists, wanted, range, likeliest);

  int64_t first = 0, last = (numel - 1) / kBlock;
  const auto by_block = [=](const Marks& list, Range within, const auto& add) {
    list.for_each(single, [&](int64_t block, int64_t n, const uint32_t*, const uint32_t* scores) {
      if (block / kBlock < within.low || block / kBlock > within.high) return;
      add(block / kBlock, single ? n : count_equal(scores, n, ties.score));
    });
  };
  Cut cut = {ties.score, -1, ties.wanted < ties.count};
  narrow(lists, by_block, &ties.wanted, &first, &last);
  for (const Marks* list : lists) {
    list->for_each(single, [&](int64_t block, int64_t, const uint32_t* marks, const uint32_t* scores) {
      if (block == first * kBlock) cut.last_tie = nth_tie(block, marks, scores, single, ties.score, ties.wanted);
    });
  }
  return cut;
}

}  // namespace fuseo1
