// SPDX-License-Identifier: Apache-2.0
// Scores of a block: |d| times the factor of its row (include/fuseo1/select.h).
// Included only by the per-ISA sources; internal linkage throughout (see simd.h).
#ifndef FUSEO1_CPU_KERNELS_ROW_FACTORS_H_
#define FUSEO1_CPU_KERNELS_ROW_FACTORS_H_

#include "fuseo1/select.h"
#include "simd.h"

namespace fuseo1 {
namespace {

// Scores of the `count` elements from flat index `flat` on, and 0 for the rest of the block; `scores` may be `d`.
inline void score_rows(const fuseo1_row_factors& rows, int64_t flat, int64_t count, const float* d, float* scores) {
  int64_t number = flat / rows.row, next = (number + 1) * rows.row - flat;
  for (int64_t j = 0; j < count; ++number, next += rows.row) {
    const float factor = rows.factors[number];
    for (const int64_t end = next < count ? next : count; j < end; ++j) {
      const float score = __builtin_fabsf(d[j]) * factor;
      scores[j] = score > __FLT_MAX__ ? __FLT_MAX__ : score;
    }
  }
  for (int64_t j = count; j < kBlock; ++j) scores[j] = 0.0f;
}

}  // namespace
}  // namespace fuseo1
#endif  // FUSEO1_CPU_KERNELS_ROW_FACTORS_H_
