// SPDX-License-Identifier: Apache-2.0
// The quantum of a block's sum: 2^(E - 149), where E is the exponent field of its largest term, at least 22.
// Included only by the per-ISA sources; internal linkage throughout (see simd.h).
#ifndef FUSEO1_CPU_KERNELS_QUANTA_H_
#define FUSEO1_CPU_KERNELS_QUANTA_H_

#include "simd.h"

namespace fuseo1 {
namespace {

FUSEO1_INLINE uint32_t exponent_of(uint32_t peak) { return peak >> 23 > kMinExponent ? peak >> 23 : kMinExponent; }

FUSEO1_INLINE Vf scale_of(uint32_t exponent) { return from_bits(splat(scale_bits(exponent))); }

}  // namespace
}  // namespace fuseo1
#endif  // FUSEO1_CPU_KERNELS_QUANTA_H_
