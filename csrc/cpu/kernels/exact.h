// SPDX-License-Identifier: Apache-2.0
// fuse as it is defined (include/fuseo1/fuse.h): fp64, one rounded operation at a time.
// Included only by the per-ISA sources; internal linkage throughout (see simd.h).
#ifndef FUSEO1_CPU_KERNELS_EXACT_H_
#define FUSEO1_CPU_KERNELS_EXACT_H_

#include "block.h"
#include "simd64.h"

namespace fuseo1 {
namespace {

// Decides which targets survive.
template <int kElect>
struct Election {
  static constexpr bool kByTerms = kElect != FUSEO1_ELECT_SUM;  // the votes are t, not z
  Vd s = splat(-0.0);                                           // -0.0 + t_1 is t_1
  Vfh sum_of_z = narrow(s);
  Mask64 finite = inverse(Mask64{});
  Vdu flip{};

  void vote(Vfh z, Vd t) {
    if (kElect == FUSEO1_ELECT_SUM) {
      sum_of_z += z;
    } else if (kElect == FUSEO1_ELECT_COUNT) {
      const Vd one = from_bits(bits(splat(1.0)) | (bits(t) & (uint64_t{1} << 63)));
      s += select(equal(t, Vd{}), Vd{}, one);
      finite &= is_finite(t);
    } else {
      s += t;
    }
  }
  // With signs flipped where s < 0, "has the elected sign" is "> 0". The sign bit of s tells s < 0, except for -0.0:
  // the sum of votes that are all -0.0, none of which survives.
  void close() {
    if (kElect == FUSEO1_ELECT_SUM) s = widen(sum_of_z);
    if (kElect != FUSEO1_ELECT_COUNT) finite = is_finite(s);
    flip = bits(s) & (uint64_t{1} << 63);
  }
  Mask64 survives(Vd vote) const {
    return kElect == FUSEO1_ELECT_NONE ? inverse(equal(vote, Vd{})) : greater(from_bits(bits(vote) ^ flip), Vd{});
  }
};

// Merges the first `count` elements of a block, whose d are z; `count` is a multiple of kWidth. `chosen` nullptr: every
// element is selected by score. The results are rounded to odd if they will be rounded again, else to nearest.
//
// If no target survives, delta is -0.0. The empty sum is -0.0, and stays so when it is divided and multiplied by
// anything not negative; the instance for any number of targets (kTargets 0) also handles negative numbers, `alone`,
// and `chosen` for elections other than SUM.
//
// kFixed: the divisor is params.divisor. A template argument, because GCC 12 would test it in the loop.
template <int kElect, int kTargets, bool kFixed>
void merge_exactly(const fuseo1_fuse_params& params, bool to_odd, const Block& block, const Mask* chosen, int count,
                   float* merged) {
  constexpr bool kAny = kTargets == 0;
  constexpr bool kMayChoose = kAny || kElect == FUSEO1_ELECT_SUM;
  // The survivors, which are all t that are not 0, are already summed in s.
  constexpr bool kAllVotes = kElect == FUSEO1_ELECT_NONE && kFixed && !kAny;
  const int n = kTargets ? kTargets : params.targets;
  Vd weights[kAny ? FUSEO1_MAX_TARGETS : kTargets], shares[kAny ? FUSEO1_MAX_TARGETS : kTargets];
  for (int i = 0; i < n; ++i) weights[i] = splat(params.weights[i]);
  for (int i = 0; i < n; ++i) shares[i] = splat((params.shares ? params.shares : params.weights)[i]);
  const bool divides = params.divisor != 1.0;
  const Vd divisor = splat(params.divisor);
  // The divisor is the sum of shares if this (without a floor its magnitude) is at least `least`; else it is `instead`.
  const bool floored = params.floor_divisor != 0.0;
  const Vd least = splat(floored ? params.floor_divisor : least_divisor(kElect));
  const Vd instead = splat(floored ? params.floor_divisor : 1.0);
  const Vdu without = floored ? Vdu{} : bits(splat(-0.0));
  const Vd scale = splat(params.scale), base_scale = splat(params.base_scale);
  const Vd nothing = splat(-0.0);  // x + -0.0 is x, for x = -0.0 too
  for (int j = 0; j < count; j += kWidth64) {
    const auto weighed = [&](int i) { return weights[i] * load_wide(block.d[i] + j); };
    Election<kElect> election;
    for (int i = 0; i < n; ++i) election.vote(load<Vfh>(block.d[i] + j), election.kByTerms ? weighed(i) : Vd{});
    election.close();
    Vd num = nothing, den{}, alone = splat(1.0);
    Mask64 any{}, several{};
    if (kAllVotes) {
      Vdu votes{};
      for (int i = 0; i < n; ++i) votes |= bits(weighed(i));
      num = select(equal(from_bits(votes), Vd{}), nothing, election.s);
    }
    for (int i = 0; i < n && !kAllVotes; ++i) {
      const Vd t = weighed(i);
      Mask64 survives = election.survives(election.kByTerms ? t : load_wide(block.d[i] + j));
      if (kMayChoose && chosen) survives &= half(chosen[j / kWidth], j % kWidth / kWidth64);
      num = add(survives, num, t);
      if (!kFixed) den = add(survives, den, shares[i]);
      if (kAny && params.alone) {
        several |= any & survives;
        alone = select(survives, splat(params.alone[i]), alone);
      }
      if (kAny) any |= survives;
    }
    if (kAny && params.alone) num *= select(several, splat(1.0), alone);
    if (!kFixed) {
      num /= select(greater_equal(from_bits(bits(den) & ~without), least), den, instead);
    } else if (divides) {
      num /= divisor;
    }
    Vd delta = scale * num;
    if (kAny) delta = select(any, delta, nothing);
    const Vd sum = select(election.finite, base_scale * load_wide(block.base + j) + delta, splat(__builtin_nan("")));
    store(merged + j, to_odd ? narrow_to_odd(sum) : narrow(sum));
  }
}

using MergeExactly = void(const fuseo1_fuse_params&, bool, const Block&, const Mask*, int, float*);

template <int kElect>
MergeExactly* exact_for_election(int targets, bool fixed) {
  if (fixed) {
    FUSEO1_UNROLL_TARGETS(targets, return (merge_exactly<kElect, kTargets, true>))
  }
  FUSEO1_UNROLL_TARGETS(targets, return (merge_exactly<kElect, kTargets, false>))
}

// The instance that a fuse needs.
inline MergeExactly* exact_for(const fuseo1_fuse_params& params) {
  const bool signs =
      __builtin_signbit(params.scale) || __builtin_signbit(params.divisor) || __builtin_signbit(params.floor_divisor);
  const bool rare = signs || params.alone || (params.masked && params.elect != FUSEO1_ELECT_SUM);
  const int targets = rare ? 0 : params.targets;
  return with_election(params.elect,
                       [&](auto elect) { return exact_for_election<elect()>(targets, params.divisor != 0.0); });
}

}  // namespace
}  // namespace fuseo1
#endif  // FUSEO1_CPU_KERNELS_EXACT_H_
