// SPDX-License-Identifier: Apache-2.0
// exp and log in fp64 as include/fuseo1/survey.h defines them, in single operations, so that every instruction set and
// C library gives the same bits.
// Included only by the per-ISA sources; internal linkage throughout (see simd.h).
#ifndef FUSEO1_CPU_KERNELS_EXP_LOG_H_
#define FUSEO1_CPU_KERNELS_EXP_LOG_H_

#include "simd64.h"

namespace fuseo1 {
namespace {

constexpr double kMagic64 = 0x1.8p52;  // x + kMagic64 rounds x to an integer, which is then in the low bits

// 1/13!, 1/12!, ..., 1/0!
constexpr double kExp[] = {
    1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040,
    1.0 / 720,        1.0 / 120,       1.0 / 24,       1.0 / 6,       1.0 / 2,      1.0,         1.0};
constexpr double kLog2E = 0x1.71547652b82fep0;
constexpr double kLn2High = 0x1.62e42feep-1, kLn2Low = 0x1.a39ef35793c76p-33;  // k * kLn2High is exact
constexpr double kLeastExponent = -700.0;

// exp(x) for x <= 0.
FUSEO1_INLINE Vd exp_of(Vd x) {
  const Vd shifted = x * splat(kLog2E) + splat(kMagic64), k = shifted - splat(kMagic64);
  const Vd r = (x - k * splat(kLn2High)) - k * splat(kLn2Low);
  Vd p = splat(kExp[0]);
#pragma GCC unroll 13
  for (int n = 1; n < 14; ++n) p = p * r + splat(kExp[n]);
  const Vd result = from_bits(bits(p) + (bits(shifted) << 52));  // times 2^k
  return select(greater(x, splat(kLeastExponent)), result, Vd{});
}

// 1/21, 1/19, ..., 1/3
constexpr double kLog[] = {1.0 / 21, 1.0 / 19, 1.0 / 17, 1.0 / 15, 1.0 / 13,
                           1.0 / 11, 1.0 / 9,  1.0 / 7,  1.0 / 5,  1.0 / 3};
constexpr double kLn2 = 0x1.62e42fefa39efp-1;
constexpr uint64_t kLeastMantissa = 0x3fe6a09e00000000u;  // bits of 0x1.6a09ep-1, just below the square root of 1/2

// log(y) for normal y > 0.
FUSEO1_INLINE Vd log_of(Vd y) {
  const Vdu biased = (bits(y) - kLeastMantissa + (uint64_t{1024} << 52)) >> 52;  // k + 1024
  const Vd k = from_bits(biased | bits(splat(0x1p52))) - splat(0x1p52 + 1024);
  const Vd f = from_bits(bits(y) - ((biased - 1024) << 52)) - splat(1.0);
  const Vd s = f / (splat(2.0) + f), z = s * s, w = s + s;
  Vd p = splat(kLog[0]);
#pragma GCC unroll 9
  for (int n = 1; n < 10; ++n) p = p * z + splat(kLog[n]);
  return k * splat(kLn2) + (w + w * (z * p));
}

}  // namespace
}  // namespace fuseo1
#endif  // FUSEO1_CPU_KERNELS_EXP_LOG_H_
