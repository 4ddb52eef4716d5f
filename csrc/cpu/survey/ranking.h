// SPDX-License-Identifier: Apache-2.0
// The search for the threshold of the k largest scores: its state between passes. Scores are the 31 bits of
// non-negative fp32 numbers; the exact path finds the threshold's high 16 bits first.
#ifndef FUSEO1_CPU_SURVEY_RANKING_H_
#define FUSEO1_CPU_SURVEY_RANKING_H_

#include <stdint.h>

#include "base.h"
#include "kernels/table.h"
#include "pages.h"

namespace fuseo1 {

constexpr uint32_t kNothing = 0x7fffffff;  // a threshold above every score
constexpr int kLowBits = 15;
constexpr int64_t kHighBins = (kInfBits >> kLowBits) + 1, kLowBins = 1 << kLowBits;

// Counts `n` scores by their high bits; counts those of one high bin by their low bits.
inline void count_high(const uint32_t* scores, int64_t n, Pages<int64_t>* histogram) {
  for (int64_t j = 0; j < n; ++j) ++(*histogram)[scores[j] >> kLowBits];
}
inline void count_low(const uint32_t* scores, int64_t n, uint32_t high_bin, Pages<int64_t>* histogram) {
  for (int64_t j = 0; j < n; ++j) {
    if (scores[j] >> kLowBits == high_bin) ++(*histogram)[scores[j] & (kLowBins - 1)];
  }
}

struct Ranking {
  Bracket bracket = {1, kInfBits};
  uint32_t threshold = kNothing;
  int64_t selected = 0;      // k
  int64_t tie_limit = -1;    // numel - 1 until the ties are known to be cut
  uint32_t high_bin = 0;     // of the threshold
  int64_t wanted = 0;        // how many of the current bin, or of the ties, are selected
  int64_t cut_stretch = -1;  // where the ties are cut; -1: nowhere

  void settle(uint32_t at, int64_t k, int64_t last_tie) { threshold = at, selected = k, tie_limit = last_tie; }

  // Evaluates the exact path's histograms; k >= 1.
  void take_high(const Pages<int64_t>& histogram, int64_t k) {
    selected = wanted = k;
    high_bin = static_cast<uint32_t>(histogram.rend() - reach(histogram.rbegin(), histogram.rend()) - 1);
  }
  // Returns whether the ties are cut.
  bool take_low(const Pages<int64_t>& histogram, int64_t numel) {
    const auto at = reach(histogram.rbegin(), histogram.rend());
    settle(high_bin << kLowBits | static_cast<uint32_t>(histogram.rend() - at - 1), selected, numel - 1);
    return wanted < *at;
  }
  void take_ties(const Pages<uint32_t>& by_stretch) {
    cut_stretch = reach(by_stretch.begin(), by_stretch.end()) - by_stretch.begin();
  }

 private:
  // The first count at which the sum reaches `wanted`; subtracts the counts before it from `wanted`.
  template <class Counts>
  Counts reach(Counts first, Counts end) {
    for (; first != end && *first < wanted; ++first) wanted -= *first;
    if (first == end) throw DataChanged();
    return first;
  }
};

}  // namespace fuseo1
#endif  // FUSEO1_CPU_SURVEY_RANKING_H_
