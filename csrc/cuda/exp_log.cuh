// SPDX-License-Identifier: Apache-2.0
// exp and log in fp64 as include/fuseo1/survey.h defines them, in single operations, so that the bits are the CPU's.
#ifndef FUSEO1_CUDA_EXP_LOG_CUH_
#define FUSEO1_CUDA_EXP_LOG_CUH_

#include "element.cuh"

namespace fuseo1 {

__device__ __forceinline__ uint64_t bits_of(double x) { return static_cast<uint64_t>(__double_as_longlong(x)); }
__device__ __forceinline__ double from_bits(uint64_t bits) {
  return __longlong_as_double(static_cast<long long>(bits));
}

// exp(x) for x <= 0.
__device__ __forceinline__ double exp_of(double x) {
  // 1/13!, 1/12!, ..., 1/0!
  constexpr double kFactors[] = {
      1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040,
      1.0 / 720,        1.0 / 120,       1.0 / 24,       1.0 / 6,       1.0 / 2,      1.0,         1.0};
  constexpr double kLog2E = 0x1.71547652b82fep0, kMagic = 0x1.8p52;  // x + kMagic rounds x to an integer
  constexpr double kLn2High = 0x1.62e42feep-1, kLn2Low = 0x1.a39ef35793c76p-33;
  if (x <= -700.0) return 0.0;
  const double shifted = __dadd_rn(__dmul_rn(x, kLog2E), kMagic), k = __dsub_rn(shifted, kMagic);
  const double r = __dsub_rn(__dsub_rn(x, __dmul_rn(k, kLn2High)), __dmul_rn(k, kLn2Low));
  double p = kFactors[0];
#pragma unroll
  for (int n = 1; n < 14; ++n) p = __dadd_rn(__dmul_rn(p, r), kFactors[n]);
  return from_bits(bits_of(p) + (bits_of(shifted) << 52));  // times 2^k
}

// log(y) for normal y > 0.
__device__ __forceinline__ double log_of(double y) {
  // 1/21, 1/19, ..., 1/3
  constexpr double kFactors[] = {1.0 / 21, 1.0 / 19, 1.0 / 17, 1.0 / 15, 1.0 / 13,
                                 1.0 / 11, 1.0 / 9,  1.0 / 7,  1.0 / 5,  1.0 / 3};
  constexpr uint64_t kLeastMantissa = 0x3fe6a09e00000000u;  // bits of 0x1.6a09ep-1, just below the root of 1/2
  const int64_t k = static_cast<int64_t>(bits_of(y) - kLeastMantissa) >> 52;
  const double f = __dsub_rn(from_bits(bits_of(y) - (static_cast<uint64_t>(k) << 52)), 1.0);
  const double s = __ddiv_rn(f, __dadd_rn(2.0, f)), z = __dmul_rn(s, s), w = __dadd_rn(s, s);
  double p = kFactors[0];
#pragma unroll
  for (int n = 1; n < 10; ++n) p = __dadd_rn(__dmul_rn(p, z), kFactors[n]);
  return __dadd_rn(__dmul_rn(static_cast<double>(k), 0x1.62e42fefa39efp-1),
                   __dadd_rn(w, __dmul_rn(w, __dmul_rn(z, p))));
}

}  // namespace fuseo1
#endif  // FUSEO1_CUDA_EXP_LOG_CUH_
