// SPDX-License-Identifier: Apache-2.0
// fuse by any parameters of include/fuseo1/fuse.h: in fp32 for the election of SCE, in fp64 for the others.
#ifndef FUSEO1_CUDA_FUSE_GENERAL_CUH_
#define FUSEO1_CUDA_FUSE_GENERAL_CUH_

#include "fuse_sce.cuh"
#include "fuseo1/fuse.h"
#include "select.cuh"

namespace fuseo1 {

__device__ __forceinline__ float add(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ float multiply(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ float divide(float a, float b) { return __fdiv_rn(a, b); }
__device__ __forceinline__ double add(double a, double b) { return __dadd_rn(a, b); }
__device__ __forceinline__ double multiply(double a, double b) { return __dmul_rn(a, b); }
__device__ __forceinline__ double divide(double a, double b) { return __ddiv_rn(a, b); }

// The parameters of fuse, rounded to the type of its arithmetic; by value.
template <class Real>
struct FuseParams {
  Real weights[FUSEO1_CUDA_MAX_TARGETS], shares[FUSEO1_CUDA_MAX_TARGETS];
  Real divisor, floor, scale, base_scale;
  int32_t elect, masked;
  uint32_t threshold;
  int64_t tie_limit;
  Selects selects;
};

// The delta of element j, which is added to the scaled base; NaN if the votes are not finite. z[i][j]: the selected
// part of target i's d; `kept`: the element is selected by score.
template <int kN, class Real>
__device__ __forceinline__ Real delta_of(const FuseParams<Real>& params, const float (*z)[kLane], int j, int targets,
                                         bool kept) {
  constexpr bool kSce = sizeof(Real) == sizeof(float);  // d itself votes
  const bool by_count = !kSce && params.elect == FUSEO1_ELECT_COUNT;
  const bool none = !kSce && params.elect == FUSEO1_ELECT_NONE;
  const Real nothing = static_cast<Real>(-0.0);  // x + -0.0 is x, for x = -0.0 too
  const auto vote = [&](int i) {
    const Real own = static_cast<Real>(z[i][j]);
    return kSce ? own : multiply(params.weights[i], own);
  };
  Real s = nothing;
  bool finite = true;
#pragma unroll
  for (int i = 0; i < kN; ++i) {
    if (!is_target<kN>(i, targets)) continue;
    const Real v = vote(i);
    if (by_count) finite = finite && isfinite(v);
    s = add(s, !by_count ? v : v > 0 ? Real{1} : v < 0 ? Real{-1} : Real{0});
  }
  if (!finite || !isfinite(s)) return static_cast<Real>(__uint_as_float(0x7fc00000u));
  const bool negative = !(s >= 0);
  Real num = nothing, den = 0;
  bool any = false;
#pragma unroll
  for (int i = 0; i < kN; ++i) {
    if (!is_target<kN>(i, targets)) continue;
    const Real v = vote(i);
    if (!kept || !(none ? v != 0 : (negative ? -v : v) > 0)) continue;
    num = add(num, kSce ? multiply(params.weights[i], v) : v);
    den = add(den, params.shares[i]);
    any = true;
  }
  if (!any) return nothing;
  if (params.divisor != 1) {
    const Real over = params.divisor != 0 ? params.divisor
                      : params.floor == 0 ? ((kSce ? den == 0 : fabs(den) < kLeastDivisor) ? Real{1} : den)
                                          : (den > params.floor ? den : params.floor);
    num = divide(num, over);
  }
  return multiply(params.scale, num);
}

template <int kN, class In, class Real>
__global__ void __launch_bounds__(kThreads, 1)
    fuse_general(const __grid_constant__ Inputs in, const __grid_constant__ FuseParams<Real> params, int64_t offset,
                 Output out, Count* written) {
  const Divisor divisor(in.targets);
  uint32_t nonfinite = 0;
  for_each_block(in.numel, [&](int64_t at, int count) {
    Block<kN, In> block;
    block.load(in, at, count);
    uint32_t kept = 0xffu;
    if (params.masked) {
      uint32_t scores[kLane];
      block.score(divisor, in.targets, scores);
      kept = cut_mask(scores, offset + at, params.threshold, params.tie_limit);
    }
    if (params.selects.any) {
#pragma unroll
      for (int i = 0; i < kN; ++i) {
        if (is_target<kN>(i, in.targets)) apply_select(params.selects.of[i], at, offset + at, count, block.d[i]);
      }
    }
    Real bases[kLane], deltas[kLane];
#pragma unroll
    for (int j = 0; j < kLane; ++j) {
      bases[j] = multiply(params.base_scale, static_cast<Real>(block.base[j]));
      deltas[j] = delta_of<kN>(params, block.d, j, in.targets, kept >> j & 1u);
    }
    nonfinite += store_to(out, bases, deltas, at, count);
  });
  if (nonfinite) atomicAdd(written, static_cast<Count>(nonfinite));
}

}  // namespace fuseo1
#endif  // FUSEO1_CUDA_FUSE_GENERAL_CUH_
