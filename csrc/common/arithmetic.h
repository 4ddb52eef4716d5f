// SPDX-License-Identifier: Apache-2.0
// Constants of the arithmetic contract, shared by every backend (include/fuseo1/survey.h states the formulas).
#ifndef FUSEO1_COMMON_ARITHMETIC_H_
#define FUSEO1_COMMON_ARITHMETIC_H_

#include <stdint.h>

#include "fuseo1/fuse.h"

// Always inlined: the CPU's sources are compiled for several instruction sets, and the linker would keep one copy.
#if defined(__CUDACC__)
#define FUSEO1_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define FUSEO1_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace fuseo1 {

constexpr int kBlock = 256;
constexpr uint32_t kInfBits = 0x7f800000u;

// Energy quanta. A block's scale is 2^(149-E); E >= 22 keeps it a normal fp32.
constexpr uint32_t kMinExponent = 22;
constexpr int kExponents = 256;
constexpr int kUnits = 149;  // the exponent whose quantum is 1: sums of counts
FUSEO1_HOST_DEVICE constexpr uint32_t scale_bits(uint32_t exponent) { return (276u - exponent) << 23; }

// x + 2^23 rounds x in [0, 2^23] to an integer, to nearest even; the integer is the sum's bits minus those of 2^23.
constexpr float kRintMagic = 8388608.0f;
constexpr uint32_t kRintMagicBits = 0x4b000000u;

// A sum of shares whose magnitude is below this counts as 0. Decimal weights that cancel leave a residue; SCE's, which
// are never negative, do not.
FUSEO1_HOST_DEVICE constexpr double least_divisor(int32_t elect) {
  return elect == FUSEO1_ELECT_SUM ? __DBL_DENORM_MIN__ : 0x1p-27;
}

// The largest fp32 whose square is finite.
constexpr uint32_t kMaxSquarableBits = 0x5f7fffffu;

}  // namespace fuseo1
#endif  // FUSEO1_COMMON_ARITHMETIC_H_
