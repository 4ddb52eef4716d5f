// SPDX-License-Identifier: Apache-2.0
// fuse in fp32: the election of SCE (include/fuseo1/fuse.h, FUSEO1_ELECT_SUM).
// Included only by the per-ISA sources; internal linkage throughout (see simd.h).
#ifndef FUSEO1_CPU_KERNELS_MERGE_FP32_H_
#define FUSEO1_CPU_KERNELS_MERGE_FP32_H_

#include "block.h"

namespace fuseo1 {
namespace {

// The parameters of a fuse, rounded to fp32.
struct Fp32Numbers {
  explicit Fp32Numbers(const fuseo1_fuse_params& params)
      : targets(params.targets),
        divisor(static_cast<float>(params.divisor)),
        floor(static_cast<float>(params.floor_divisor)),
        scale(static_cast<float>(params.scale)),
        base_scale(static_cast<float>(params.base_scale)) {
    const double* from = params.shares ? params.shares : params.weights;
    for (int i = 0; i < targets; ++i) weights[i] = static_cast<float>(params.weights[i]);
    for (int i = 0; i < targets; ++i) shares[i] = static_cast<float>(from[i]);
  }

  int targets;
  float weights[FUSEO1_MAX_TARGETS], shares[FUSEO1_MAX_TARGETS];
  float divisor, floor, scale, base_scale;
};

// a + b, rounded to odd: if fp32 cannot hold the sum, it is truncated towards zero and its last bit set. Rounding that
// to nearest even, to fewer bits, equals rounding the exact sum; rounding the nearest fp32 would not, next to a tie.
FUSEO1_INLINE Vf add_to_odd(Vf a, Vf b) {
  const Vf s = a + b;
  const Vf b_part = s - a;
  const Vf error = (a - (s - b_part)) + (b - b_part);     // exact (Knuth's TwoSum); NaN if s is not finite
  const Vu beyond_exact = (bits(s) ^ bits(error)) >> 31;  // 1: s is farther from zero than the exact sum
  return from_bits(select(not_equal(error, Vf{}), (bits(s) - beyond_exact) | 1u, bits(s)));
}

// The block's d are z; `chosen` nullptr: every element is selected by score. The result is rounded to odd if it will be
// rounded again, else to nearest.
//
// If no target survives, delta is -0.0. The empty sum is -0.0, and stays so when it is divided and multiplied by
// anything not negative; the instance for any number of targets (kTargets 0) also handles negative numbers.
template <int kTargets>
void merge_fp32(const Fp32Numbers& by, bool to_odd, const Block& block, const Mask* chosen, float* merged) {
  constexpr bool kMindSigns = kTargets == 0;
  const int n = kTargets ? kTargets : by.targets;
  const bool fixed = by.divisor != 0.0f, floored = by.floor != 0.0f;
  const Vf divisor = splat(by.divisor), floor = splat(by.floor), scale = splat(by.scale);
  const Vf nothing = splat(-0.0f);  // x + -0.0 is x, for x = -0.0 too
  alignas(64) float deltas[kBlock];
  for (int j = 0; j < kBlock; j += kWidth) {
    const Vf s = n ? sum_of<kTargets>(block, n, j) : Vf{};
    // With signs flipped where s < 0, "has the elected sign" is "> 0".
    const Vu flip = select(greater_equal(s, Vf{}), Vu{}, splat(0x80000000u));
    Vf num = nothing, den{};
    Mask any{};
    for (int i = 0; i < n; ++i) {
      const Vf z = load<Vf>(block.d[i] + j);
      const Mask survives = greater(from_bits(bits(z) ^ flip), Vf{});
      num += select(survives, splat(by.weights[i]) * z, nothing);
      den += keep(survives, splat(by.shares[i]));
      if (kMindSigns) any |= survives;
    }
    if (chosen) {
      num = select(chosen[j / kWidth], num, nothing);
      den = keep(chosen[j / kWidth], den);
      if (kMindSigns) any &= chosen[j / kWidth];
    }
    const Vf over = fixed     ? divisor
                    : floored ? select(greater(den, floor), den, floor)
                              : select(equal(den, Vf{}), splat(1.0f), den);
    Vf delta = scale * (num / over);
    if (kMindSigns) delta = select(any, delta, nothing);
    store(deltas + j, select(is_finite(s), delta, splat(__builtin_nanf(""))));
  }
  // A separate loop: the processor overlaps two short dependency chains better than one long one.
  for (int j = 0; j < kBlock; j += kWidth) {
    const Vf b = splat(by.base_scale) * load<Vf>(block.base + j), delta = load<Vf>(deltas + j);
    store(merged + j, to_odd ? add_to_odd(b, delta) : b + delta);
  }
}

}  // namespace
}  // namespace fuseo1
#endif  // FUSEO1_CPU_KERNELS_MERGE_FP32_H_
