// SPDX-License-Identifier: Apache-2.0
// fuse: read base and targets once more; mask, elect the sign, sum with weights, add to the base, round, write.
//
// Same widening, rounding and order as survey.h. Per element:
//
//   d_i = x_i - b,  s = (d_1 + d_2) + ... + d_N
//   masked and not selected (survey.h):  out = round(b)
//   sign is + if s >= 0, else -;  target i survives where d_i is nonzero and has that sign
//   num = sum of w_i * d_i, den = sum of w_i over the survivors, in order
//   divisor = den == 0 ? 1 : den (floor_divisor == 0), else max(den, floor_divisor)
//   out = round(b + num / divisor); round(b) when nobody survives (the base's own bits, -0.0 too)
//   s not finite: out = NaN. Every NaN is written as the quiet NaN 0x7fc0, 0x7e00 or 0x7fc00000.
//
// round is to nearest even in the output's dtype, once: b + delta is added exactly and not rounded to fp32 on the way
// to bf16 or fp16. (Weighted means of bf16 task vectors lie next to bf16 ties so often that rounding twice would show.)
// Bytes moved: (N+1) * input + 1 * output size per element.
// Source: SCE, arXiv 2408.07990, "erase" as in TIES, arXiv 2306.01708.
#ifndef FUSEO1_FUSE_H_
#define FUSEO1_FUSE_H_

#include "fuseo1/types.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
  int32_t targets;
  const float* weights;  // targets of them, >= 0
  float floor_divisor;
  int32_t masked;  // apply threshold and tie_limit to the elements themselves
  uint32_t threshold;
  int64_t tie_limit;
} fuseo1_fuse_params;

// operands[0] is the base. `offset` is the flat index of the first element, a multiple of FUSEO1_BLOCK. `out` holds
// `count` elements of out_dtype at any alignment and overlaps no input. *nonfinite receives how many were written as
// infinity or NaN.
int fuseo1_fuse(const fuseo1_fuse_params* params, const fuseo1_operand* operands, int64_t offset, int64_t count,
                void* out, int32_t out_dtype, int32_t threads, int64_t* nonfinite);

#ifdef __cplusplus
}
#endif
#endif  // FUSEO1_FUSE_H_
