// SPDX-License-Identifier: Apache-2.0
// fold: a low-rank adapter added to a matrix of weights, W + s * L R, rounded once to fp32; with DoRA's factors.
//
// For row i and column j, with all inputs widened exactly to fp64:
//
//   p_0 = 0, p_k = p_(k-1) + l_ik * r_kj    for k = 1 .. rank, in this order; the products of fp32 numbers are exact
//   v = w_ij + s * p_rank
//   out = v, or f * v with factors (one for each row or for each column), rounded once to fp32
//
// DoRA's factors are f = m / sqrt(q), where q is the sum of v * v over the row or the column that f belongs to:
//
//   by row      in 8 partial sums, column j in sum j % 8, in the order of j; then, for n = 4, 2, 1 and j < n, sum j + n
//               is added to sum j
//   by column   in the order of the rows
//
// Every operation is of fp64, one at a time, rounded to nearest even. An element depends on its row of L, its column of
// R and its factor alone, so any range of elements may be asked for, in any pieces, on any number of threads. A NaN may
// have any bits.
#ifndef FUSEO1_FOLD_H_
#define FUSEO1_FOLD_H_

#include "fuseo1/types.h"

#ifdef __cplusplus
extern "C" {
#endif

enum fuseo1_fold_factors { FUSEO1_FACTORS_NONE = 0, FUSEO1_FACTORS_BY_ROW = 1, FUSEO1_FACTORS_BY_COLUMN = 2 };

// A range of a matrix begins in its first row; `left`, `factors` and `squares` begin with that row, too (by column:
// with column 0).
typedef struct {
  int64_t columns;
  int64_t rank;
  double scale;           // s
  const float* left;      // rows x rank, row-major
  const float* right;     // rank x columns, row-major
  const double* factors;  // NULL: none
  int32_t factors_by;     // enum fuseo1_fold_factors
} fuseo1_fold_params;

// Writes elements [start, start + count) of the flat matrix to out[0 .. count); `weights` begins with element `start`.
int fuseo1_fold(const fuseo1_fold_params* params, fuseo1_operand weights, int64_t start, int64_t count, float* out,
                int32_t threads);

// Adds the squares of v of `rows` whole rows to squares[], which has an entry for each row or, as `factors_by` says,
// for each column; `factors` are not applied. By row, entries are overwritten.
int fuseo1_fold_squares(const fuseo1_fold_params* params, fuseo1_operand weights, int64_t rows, double* squares,
                        int32_t threads);

// factors[i] = magnitudes[i] / sqrt(squares[i]); the two may be the same memory.
int fuseo1_fold_factors(fuseo1_operand magnitudes, const double* squares, int64_t count, double* factors);

// Widens a row-major matrix to fp32; `transposed`: out is columns x rows.
int fuseo1_fold_widen(fuseo1_operand matrix, int64_t rows, int64_t columns, int32_t transposed, float* out);

#ifdef __cplusplus
}
#endif
#endif  // FUSEO1_FOLD_H_
