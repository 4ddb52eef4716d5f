// SPDX-License-Identifier: Apache-2.0
// Scores of one target of several: |d|, or |d| times the factor of its row (include/fuseo1/select.h).
#ifndef FUSEO1_CUDA_ONE_TARGET_CUH_
#define FUSEO1_CUDA_ONE_TARGET_CUH_

#include <float.h>

#include "nonfinite.cuh"

namespace fuseo1 {

// The inputs, and the target whose scores are loaded.
struct OneTarget : Inputs {
  int32_t target;           // its operand number
  const int32_t* doubtful;  // on the device: some element's s is not finite
  fuseo1_row_factors rows;  // `factors` are on the device
};

// Multiplies |d| of a lane's `count` elements, the first with flat index `flat`, by their rows' factors. The rest stay
// 0.
__device__ __forceinline__ void score_rows(const fuseo1_row_factors& rows, int64_t flat, int count, uint32_t* scores) {
  if (count <= 0) return;
  int64_t number = flat / rows.row, next = (number + 1) * rows.row;
#pragma unroll
  for (int j = 0; j < kLane; ++j) {
    if (j >= count) continue;
    if (flat + j == next) ++number, next += rows.row;
    const float score = __fmul_rn(__uint_as_float(scores[j]), rows.factors[number]);
    scores[j] = __float_as_uint(score > FLT_MAX ? FLT_MAX : score);
  }
}

// The bits of the scores of a lane's elements from `at` on, the first with flat index `flat`. 0 where s is not finite,
// which is looked for only if `doubtful`.
template <class In>
__device__ __forceinline__ void load_magnitudes(const OneTarget& in, bool doubtful, int64_t at, int64_t flat, int count,
                                                uint32_t* scores) {
  const typename In::Raw base = In::load(in.operands[0], at, count), x = In::load(in.operands[in.target], at, count);
#pragma unroll
  for (int j = 0; j < kLane; ++j) {
    scores[j] = magnitude_bits(
        __fsub_rn(In::widen(x, in.operands[in.target].dtype, j), In::widen(base, in.operands[0].dtype, j)));
  }
  if (in.rows.factors) score_rows(in.rows, flat, count, scores);
  if (!doubtful) return;
  const uint32_t excluded = excluded_mask(in, at, count, nullptr);
#pragma unroll
  for (int j = 0; j < kLane; ++j) {
    if (excluded >> j & 1u) scores[j] = 0;
  }
}

}  // namespace fuseo1
#endif  // FUSEO1_CUDA_ONE_TARGET_CUH_
