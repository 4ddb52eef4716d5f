// SPDX-License-Identifier: Apache-2.0
// fuse by a filter (docs/arithmetic.md): fp32 with a bound on its error. If everything within the bound rounds alike,
// that is the result; the rest is left to merge_exactly. Only for outputs narrower than fp32.
// Included only by the per-ISA sources; internal linkage throughout (see simd.h).
#ifndef FUSEO1_CPU_KERNELS_FILTERED_H_
#define FUSEO1_CPU_KERNELS_FILTERED_H_

#include "block.h"
#include "filter.h"

namespace fuseo1 {
namespace {

// Whether all sets of `targets` survivors have a factor of their own in one vector.
constexpr bool has_table([[maybe_unused]] int targets) {
#if defined(__AVX2__)
  return targets != 0 && targets <= kMostInTable && 1 << targets <= kWidth;
#else
  return false;
#endif
}

struct Filter : FilterNumbers<FUSEO1_MAX_TARGETS> {
  explicit Filter(const fuseo1_fuse_params& params) : targets(params.targets) {
    const FilterTerms terms = {params.weights,       params.shares ? params.shares : params.weights,
                               params.alone,         targets,
                               params.elect,         params.divisor,
                               params.floor_divisor, params.scale,
                               params.base_scale,    params.masked != 0,
                               has_table(targets)};
    set_factors(terms);
    usable = set(terms);
  }

  int targets;
  bool usable;
};

// Merges a block, whose d are z, to out[kBlock]. `chosen` nullptr: every element is selected by score. Sets the bits of
// elements whose results are not certain, and returns how many these are; kBlock if anything is not finite or may round
// to infinity.
template <class Out, int kElect, int kTargets, bool kFixed>
int merge_filtered(const Filter& by, const Block& block, const Mask* chosen, typename Out::Bits* out, uint64_t* open) {
  constexpr bool kTable = !kFixed && has_table(kTargets), kSums = !kFixed && !kTable;
  constexpr bool kNone = kElect == FUSEO1_ELECT_NONE;
  const int n = kTargets ? kTargets : by.targets;
  const Vu sign = splat(0x80000000u);
  const Vf factors = load<Vf>(by.factors), factor = splat(by.factors[0]), base_scale = splat(by.base_scale);
  const Vf scale = splat(by.scale), floor = splat(by.floor), by_votes = splat(by.by_votes);
  const Vf by_delta = splat(by.by_delta), by_result = splat(by.by_result), least = splat(by.least);
  const bool floored = by.floor != 0.0f;
  for (int i = 0; i < kBlock / 64; ++i) open[i] = 0;
  Vu peak{};
  Vf check{};  // becomes NaN if anything is not finite
  for (int j = 0; j < kBlock; j += kWidth) {
    const auto z = [&](int i) { return load<Vf>(block.d[i] + j); };
    const auto w = [&](int i) { return splat(by.weights[i]); };
    // The election. With signs flipped where s < 0, "has the elected sign" is "> 0"; -0.0 is a sum of nothing else.
    Vf s = kElect == FUSEO1_ELECT_SUM ? z(0) : Vf{}, votes{};
    for (int i = 0; i < n && !kNone; ++i) {
      if (kElect == FUSEO1_ELECT_SUM) {
        if (i) s += z(i);
      } else if (kElect == FUSEO1_ELECT_COUNT) {
        const Vf one = from_bits(bits(splat(1.0f)) | (bits(z(i)) & sign));
        s += keep(not_equal(z(i), Vf{}), one);
        check = fma(z(i), Vf{}, check);
      } else {
        s = fma(w(i), z(i), s);
        votes = fma(w(i), abs(z(i)), votes);
      }
    }
    if (!kNone) check = fma(s, Vf{}, check);
    const Vu flip = bits(s) & sign;
    Vf num{}, den{}, size{};
    Vu set{};
    for (int i = 0; i < n; ++i) {
      Mask survives = kNone ? not_equal(z(i), Vf{}) : greater(from_bits(bits(z(i)) ^ flip), Vf{});
      if (kElect == FUSEO1_ELECT_SUM && chosen) survives &= chosen[j / kWidth];
      if (kNone) {
        num = fma(w(i), z(i), num);
        size = fma(abs(w(i)), abs(z(i)), size);
      } else {
        num = add_product(survives, w(i), z(i), num);
      }
      if (kTable) set = add(survives, set, splat(1u << i));
      if (kSums) den += keep(survives, splat(by.shares[i]));
    }
    Vf times = factor;
    if (kTable) times = look_up(factors, set);
    if (kSums) {
      den = floored ? select(greater(den, floor), den, floor) : select(greater(den, Vf{}), den, splat(1.0f));
      times = scale / den;
    }
    const Vf delta = num * times;
    const Vf result = base_scale * load<Vf>(block.base + j) + delta;
    const Vf magnitude = abs(result);
    const Vf error = fma(by_delta, kNone ? size * times : abs(delta), fma(by_result, magnitude, least));
    peak = max(peak, bits(magnitude));
    const Vu low = Out::round_near(result - error), high = Out::round_near(result + error);
    uint32_t unsure = lane_bits(Out::differ(low, high));
    if (kElect == FUSEO1_ELECT_WEIGHTED) unsure |= ~lane_bits(greater_equal(abs(s), by_votes * votes)) & kAllLaneBits;
    open[j / 64] |= uint64_t{unsure} << (j % 64);
    store_lanes(out + j, Out::low_bits(high));
  }
  if (lane_bits(equal(check, check)) != kAllLaneBits || max_lane(peak) >= Out::kSafe) return kBlock;
  int count = 0;
  for (int i = 0; i < kBlock / 64; ++i) count += __builtin_popcountll(open[i]);
  return count;
}

template <class Out>
using MergeFiltered = int(const Filter&, const Block&, const Mask*, typename Out::Bits*, uint64_t*);

template <class Out, int kElect>
MergeFiltered<Out>* filtered_for_election(int targets, bool fixed) {
  if (fixed) {
    FUSEO1_UNROLL_TARGETS(targets, return (merge_filtered<Out, kElect, kTargets, true>))
  }
  FUSEO1_UNROLL_TARGETS(targets, return (merge_filtered<Out, kElect, kTargets, false>))
}

// The instance that a fuse needs.
template <class Out>
MergeFiltered<Out>* filtered_for(const fuseo1_fuse_params& params) {
  return with_election(params.elect, [&](auto elect) {
    return filtered_for_election<Out, elect()>(params.targets, params.divisor != 0.0);
  });
}

}  // namespace
}  // namespace fuseo1
#endif  // FUSEO1_CPU_KERNELS_FILTERED_H_
