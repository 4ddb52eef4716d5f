// SPDX-License-Identifier: Apache-2.0
// decode: quantised weights as fp32. A value is its code, exact in fp32, times its block's scale, rounded once to fp32.
//
// Codes are of 8 bits (OCP 8-bit floating point): E4M3 has no infinities and one NaN of each sign, 0x7f and 0xff; E5M2
// is the upper half of fp16. The product is exact where the scale has at most 20 (E4M3) or 21 (E5M2) significant bits,
// as bf16 scales and powers of two have.
#ifndef FUSEO1_DECODE_H_
#define FUSEO1_DECODE_H_

#include "fuseo1/types.h"

#ifdef __cplusplus
extern "C" {
#endif

enum fuseo1_code { FUSEO1_E4M3 = 0, FUSEO1_E5M2 = 1 };

// A matrix in blocks of block_rows x block_columns; the last ones may be smaller. `scales` has one for each block,
// row-major. One scale for all: blocks as large as the matrix; one for each row: 1 x columns.
typedef struct {
  int32_t code;  // enum fuseo1_code
  int64_t columns;
  int64_t block_rows;
  int64_t block_columns;
  const float* scales;
} fuseo1_decode_params;

// Writes elements [start, start + count) of the flat matrix to out[0 .. count); `codes` begins with element `start`.
int fuseo1_decode(const fuseo1_decode_params* params, const uint8_t* codes, int64_t start, int64_t count, float* out,
                  int32_t threads);

#ifdef __cplusplus
}
#endif
#endif  // FUSEO1_DECODE_H_
