// SPDX-License-Identifier: Apache-2.0
// The survey of norms (include/fuseo1/survey.h): sums of |d| over all elements and over the selected ones.
#ifndef FUSEO1_CUDA_NORMS_CUH_
#define FUSEO1_CUDA_NORMS_CUH_

#include "energy.cuh"
#include "nonfinite.cuh"
#include "sums.cuh"

namespace fuseo1 {

// The exponents that scale a block's |d|, the same in all lanes; returns whether any |d| reaches kDoubtfulBits.
template <int kN, class In>
__device__ __forceinline__ bool measure(const Block<kN, In>& block, int targets, uint32_t* exponents) {
  uint32_t most = 0;
#pragma unroll
  for (int i = 0; i < kN; ++i) {
    if (!is_target<kN>(i, targets)) continue;
    uint32_t peak = 0;
#pragma unroll
    for (int j = 0; j < kLane; ++j) peak = max(peak, magnitude_bits(block.d[i][j]));
    peak = warp_max(peak);
    most = max(most, peak);
    exponents[i] = exponent_of(peak);
  }
  return most >= kDoubtfulBits;
}

// With many targets a CTA's memory holds the sums of one kind: `kind` 0 is all elements, 1 the selected ones. With few
// it holds both, and the second is found if there are selections.
template <int kN>
constexpr int kKindsAtOnce = kN <= 8 ? 2 : 1;

template <int kN, class In>
__global__ void __launch_bounds__(kThreads, 1)
    add_norms(const __grid_constant__ Inputs in, const __grid_constant__ Selects selects, int32_t kind,
              SumsWork* work) {
  constexpr int kKinds = kKindsAtOnce<kN>;
  __shared__ Sums<kN> sums[kKinds];
  for (int k = 0; k < kKinds; ++k) sums[k].clear();
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for_each_block(in.numel, [&](int64_t at, int count) {
    Block<kN, In> block;
    uint32_t exponents[kN];
    block.load(in, at, count);
    if (measure(block, in.targets, exponents)) {
      block.sanitize(in, at, count, kind == 0 ? work->nonfinite : nullptr);
      measure(block, in.targets, exponents);
    }
    uint32_t mine[kKinds] = {}, exponent = 0;
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      if (!is_target<kN>(i, in.targets)) continue;
      const float scale = __uint_as_float(scale_bits(exponents[i]));
      const bool some = selects.any && (kKinds == 2 || kind == 1);
      const uint32_t selected = some ? select_mask(selects.of[i], at, at, count, block.d[i]) : 0xffu;
      uint32_t all = 0, chosen = 0;
#pragma unroll
      for (int j = 0; j < kLane; ++j) {
        const uint32_t quantum = quantum_of(fabsf(block.d[i][j]), scale);
        all += quantum;
        if (selected >> j & 1u) chosen += quantum;
      }
      const uint32_t first = warp_sum(kKinds == 2 ? all : chosen), second = kKinds == 2 && some ? warp_sum(chosen) : 0;
      if (lane == i) mine[0] = first, mine[kKinds - 1] = kKinds == 2 ? second : first, exponent = exponents[i];
    }
    for (int k = 0; k < kKinds; ++k) {
      if (mine[k]) sums[k].bins[lane][exponent].add(mine[k]);
    }
  });
  __syncthreads();
  for (int k = 0; k < kKinds; ++k) sums[k].flush(&work->norms[kKinds == 2 ? k : kind]);
}

// One CTA: writes the sums of target 1, all and selected, those of target 2, ...
__global__ void __launch_bounds__(kThreads, 1)
    settle_norms(const SumsWork* work, int32_t targets, int32_t some, int32_t passes, fuseo1_cuda_sums* result) {
  const int i = static_cast<int>(threadIdx.x);
  if (i < 2 * targets) result->sums[i] = exact_sum<int64_t>(work->norms[some ? i % 2 : 0][i / 2]);
  settle_rest(work, passes, result);
}

}  // namespace fuseo1
#endif  // FUSEO1_CUDA_NORMS_CUH_
