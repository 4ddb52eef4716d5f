// SPDX-License-Identifier: Apache-2.0
// fuse: read base and targets once more; mask, elect the sign, sum with weights, add to the base, round, write.
//
// Same widening and order as survey.h. Per element of flat index f, for targets i = 1..N in order:
//
//   d_i = x_i - b                                 fp32
//   z_i = d_i if target i's selection (select.h) has f, or d_i is not finite; else 0; with CLAMP d_i clamped to +-most
//   t_i = w_i * z_i                               fp64 from here on
//   elect     SUM       s = z_1 + ... + z_N       in fp32; i survives where z_i is nonzero and has the elected sign
//             WEIGHTED  s = t_1 + ... + t_N       i survives where t_i is nonzero and has it
//             COUNT     s = sgn t_1 + ... + sgn t_N    likewise
//             NONE      s = t_1 + ... + t_N       i survives where t_i is nonzero
//             the elected sign is + if s >= 0, else -
//   masked and f not selected by score (survey.h): no target survives
//   num = sum of t_i, den = sum of share_i over the survivors, in order; with `alone`, where i is the only survivor:
//   num = alone_i * t_i
//   divisor = `divisor` if it is not 0; else, without a floor, den, or 1 if den is 0 (but for SUM |den| < 2^-27 counts
//             as 0: decimal weights that cancel leave a residue); else max(den, floor_divisor)
//   E = base_scale * b + scale * (num / divisor); base_scale * b, with its -0.0, if no target survives
//   out = E, rounded once, to nearest even in the output's dtype
//   s not finite (COUNT: a t_i is not): out = NaN. Every NaN is written as the quiet NaN 0x7fc0, 0x7e00 or
//   0x7fc00000.
//
// Every operation rounds to nearest even, one at a time. fp64, because weighted means of 16-bit numbers lie next to
// ties of their dtype so often that fp32's error would show: with weights like 0.3 thousands of exact results lie on
// them, and fp32's 0.3 would decide a hundredth of all elements differently from fp64's. A backend may compute
// otherwise where it can prove the same result (docs/arithmetic.md, "The filter").
//
// Weights, shares, factors, divisors and scales are finite; by others backends may write different results.
//
// Without targets out = round(base_scale * b). A method without a base uses its first model as the base: sum c_i x_i is
// (sum c_i) b + sum c_i d_i, which reads one stream less and rounds where it is small.
//
// Bytes moved: (N+1) * input + 1 * output size per element.
// Sources: SCE, arXiv 2408.07990; TIES, arXiv 2306.01708; task arithmetic, arXiv 2212.04089; RAM, arXiv 2601.13572.
#ifndef FUSEO1_FUSE_H_
#define FUSEO1_FUSE_H_

#include "fuseo1/select.h"
#include "fuseo1/types.h"

#ifdef __cplusplus
extern "C" {
#endif

enum fuseo1_elect { FUSEO1_ELECT_SUM = 0, FUSEO1_ELECT_WEIGHTED = 1, FUSEO1_ELECT_COUNT = 2, FUSEO1_ELECT_NONE = 3 };

typedef struct {
  int32_t targets;        // 0 to FUSEO1_MAX_TARGETS
  const double* weights;  // one per target
  const double* shares;   // nullptr: the weights
  const double* alone;    // nullptr: 1 each
  int32_t elect;          // enum fuseo1_elect
  double divisor;         // 0: the sum of the survivors' shares
  double floor_divisor;
  double scale, base_scale;
  const fuseo1_select* selects;  // one per target; nullptr: everything is selected
  int32_t masked;                // apply threshold and tie_limit to the elements' scores
  uint32_t threshold;
  int64_t tie_limit;
} fuseo1_fuse_params;

// operands[0] is the base. `offset` is the flat index of the first element, a multiple of FUSEO1_BLOCK. `out` holds
// `count` elements of out_dtype at any alignment and overlaps no input. *nonfinite receives how many outputs are
// infinite or NaN.
int fuseo1_fuse(const fuseo1_fuse_params* params, const fuseo1_operand* operands, int64_t offset, int64_t count,
                void* out, int32_t out_dtype, int32_t threads, int64_t* nonfinite);

#ifdef __cplusplus
}
#endif
#endif  // FUSEO1_FUSE_H_
