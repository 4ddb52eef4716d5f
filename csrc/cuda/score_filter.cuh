// SPDX-License-Identifier: Apache-2.0
// Tells on which side of a bound a score lies, where that is certain without computing it (docs/arithmetic.md, "The
// filter"). N^2 variance = N sum d^2 - (sum d)^2, and an error bound.
#ifndef FUSEO1_CUDA_SCORE_FILTER_CUH_
#define FUSEO1_CUDA_SCORE_FILTER_CUH_

#include "block.cuh"

namespace fuseo1 {

// Squares below this, 2^100 as fp32 bits, leave nothing to overflow.
constexpr uint32_t kMostFiltered = 0x71800000u;
// N^2 variance above this is certainly not 0, and what squares lose as denormals is far below.
constexpr float kLeastFiltered = 0x1p-80f;
constexpr uint32_t kLeastFilteredBits = 0x17800000u;

// N^2 times the score is between these.
struct ScoreRange {
  float least, most;
};

// N, reduced and enlarged by the error bound.
struct ScoreBounds {
  float by_least, by_most;

  explicit __device__ __forceinline__ ScoreBounds(int targets) {
    const float n = static_cast<float>(targets);
    const float error = __fmul_rn(__fmaf_rn(4.0f, n, 10.0f), 0x1p-24f * (1.0f + 0x1p-6f));
    by_least = __fmul_rn(n, 1.0f - error), by_most = __fmul_rn(n, 1.0f + error);
  }
};

// N^2 times a bound of scores. Beyond infinity there are none.
__device__ __forceinline__ float scaled_bound(int targets, uint32_t score) {
  return __fmul_rn(__uint_as_float(min(score, kInfBits)), static_cast<float>(targets * targets));
}

// sum d^2 of element j.
template <int kN, class In>
__device__ __forceinline__ float sum_of_squares(const Block<kN, In>& block, int j, int targets) {
  float squares = __fmul_rn(block.d[0][j], block.d[0][j]);
#pragma unroll
  for (int i = 1; i < kN; ++i) {
    if (is_target<kN>(i, targets)) squares = __fmaf_rn(block.d[i][j], block.d[i][j], squares);
  }
  return squares;
}

// Of the bounds of the bracket.
struct ScoreFilter : ScoreBounds {
  float above, below;

  __device__ __forceinline__ ScoreFilter(int targets, uint32_t low, uint32_t high)
      : ScoreBounds(targets),
        above(fmaxf(scaled_bound(targets, high), kLeastFiltered)),
        below(scaled_bound(targets, low)) {
    if (!(below > kLeastFiltered)) below = -kLeastFiltered;  // nothing is certainly below
  }

  template <int kN, class In>
  __device__ __forceinline__ ScoreRange range(const Block<kN, In>& block, int j, int targets) const {
    const float s = block.sum(j, targets), squares = sum_of_squares(block, j, targets);
    const float of_sum = __fmul_rn(-s, s);
    return {__fmaf_rn(squares, by_least, of_sum), __fmaf_rn(squares, by_most, of_sum)};
  }

  // Numbers whose sign bits say that the score is certainly above, or below.
  __device__ __forceinline__ uint32_t to_above(const ScoreRange& range) const {
    return __float_as_uint(__fsub_rn(above, range.least));
  }
  __device__ __forceinline__ uint32_t from_below(const ScoreRange& range) const {
    return __float_as_uint(__fsub_rn(range.most, below));
  }
};

// A mask for each of a lane's elements: all bits if its score selects it, else none.
struct Kept {
  uint32_t mask[kLane];

  explicit __device__ __forceinline__ Kept(uint32_t all) {
#pragma unroll
    for (int j = 0; j < kLane; ++j) mask[j] = all;
  }
  // From a bit each.
  static __device__ __forceinline__ Kept of_bits(uint32_t bits) {
    Kept kept(0);
#pragma unroll
    for (int j = 0; j < kLane; ++j) kept.mask[j] = 0u - (bits >> j & 1u);
    return kept;
  }
};

// Of a threshold.
struct ThresholdFilter : ScoreBounds {
  float scaled;
  uint32_t doubt;  // the sign bit: the filter says nothing

  __device__ __forceinline__ ThresholdFilter(int targets, uint32_t threshold)
      : ScoreBounds(targets),
        scaled(scaled_bound(targets, threshold)),
        doubt(scaled > kLeastFiltered ? 0u : 0x80000000u) {}

  // A lane's elements. Of those that this leaves open `is_kept` tells, by number and score.
  template <int kN, class In, class F>
  __device__ __forceinline__ Kept kept(const Block<kN, In>& block, int targets, const F& is_kept) const {
    Kept kept(0);
    uint32_t from_below[kLane], within = doubt, largest = 0;
#pragma unroll
    for (int j = 0; j < kLane; ++j) {
      const float s = block.sum(j, targets), squares = sum_of_squares(block, j, targets);
      // Their signs say whether the score is certainly above, or below.
      const float rest = __fmaf_rn(s, s, scaled), to_above = __fmaf_rn(-squares, by_least, rest);
      from_below[j] = __float_as_uint(__fmaf_rn(squares, by_most, -rest));
      kept.mask[j] = static_cast<uint32_t>(static_cast<int32_t>(__float_as_uint(to_above)) >> 31);
      within |= ~(__float_as_uint(to_above) | from_below[j]);
      largest = max(largest, __float_as_uint(squares));
    }
    const bool too_large = largest >= kMostFiltered;
    if (!(within >> 31) && !too_large) return kept;
    const Divisor divisor(number_of<kN>(targets));
#pragma unroll
    for (int j = 0; j < kLane; ++j) {
      if (!doubt && !too_large && (kept.mask[j] | from_below[j]) >> 31) continue;
      kept.mask[j] = is_kept(j, block.score_of(j, divisor, targets)) ? ~0u : 0u;
    }
    return kept;
  }
};

// Whether element j's score is certainly 0: all d are alike, and short enough for exact sums.
template <int kN, class In>
__device__ __forceinline__ bool certainly_zero(const Block<kN, In>& block, int j, int targets) {
  static_assert(FUSEO1_CUDA_MAX_TARGETS <= 16);
  bool alike = (__float_as_uint(block.d[0][j]) & 15u) == 0;
#pragma unroll
  for (int i = 1; i < kN; ++i) {
    if (is_target<kN>(i, targets)) alike = alike && block.d[i][j] == block.d[0][j];
  }
  return alike;
}

}  // namespace fuseo1
#endif  // FUSEO1_CUDA_SCORE_FILTER_CUH_
