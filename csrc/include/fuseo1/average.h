// SPDX-License-Identifier: Apache-2.0
// average: the weighted mean of any number of inputs, some of them in each call.
//
// Inputs are widened exactly. Per element, for all inputs of all calls in order:
//
//   S = -0.0;  S = S + w_i * x_i                  fp64, two roundings for each input
//   E = S / divisor                               fp64; S itself if divisor is 1
//   out = E, rounded once, to nearest even in the output's dtype; the quiet NaN 0x7fc0, 0x7e00 or 0x7fc00000 if S is
//   not finite
//
// Unlike fuse with FUSEO1_ELECT_NONE, which takes differences to its first input in fp32, nothing is rounded to fp32 on
// the way: with n inputs E is within (n + 1) 2^-52 of the sum of |w_i x_i / divisor|.
//
// Bytes moved: every input once, the output once; `sums`, where inputs come in several calls, once each way by call.
// Sources: model soups, arXiv 2203.05482; checkpoint averages, arXiv 2507.17634.
#ifndef FUSEO1_AVERAGE_H_
#define FUSEO1_AVERAGE_H_

#include "fuseo1/types.h"

#ifdef __cplusplus
extern "C" {
#endif

// The most inputs of a call.
#define FUSEO1_MAX_AVERAGED (FUSEO1_MAX_TARGETS + 1)

typedef struct {
  int32_t inputs;         // 1 to FUSEO1_MAX_AVERAGED: those of this call
  const double* weights;  // one per input, finite
  double divisor;         // finite and not 0; only the last call uses it
  int32_t first, last;    // whether the call has the mean's first inputs, and its last ones
  double* sums;           // S of `count` elements between calls; nullptr if the call is first and last
} fuseo1_average_params;

// `out` holds `count` elements of out_dtype at any alignment and overlaps no input; only the last call writes it, and
// sets *nonfinite to how many outputs are infinite or NaN; the others set 0.
int fuseo1_average(const fuseo1_average_params* params, const fuseo1_operand* operands, int64_t count, void* out,
                   int32_t out_dtype, int32_t threads, int64_t* nonfinite);

#ifdef __cplusplus
}
#endif
#endif  // FUSEO1_AVERAGE_H_
