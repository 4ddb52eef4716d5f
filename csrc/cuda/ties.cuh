// SPDX-License-Identifier: Apache-2.0
// Finds the last selected tie at the threshold: ties of the lowest indices are selected.
#ifndef FUSEO1_CUDA_TIES_CUH_
#define FUSEO1_CUDA_TIES_CUH_

#include "histogram.cuh"

namespace fuseo1 {

// A bit for each of a lane's eight elements from `at` on whose score is the threshold.
template <int kN, class Source>
__device__ __forceinline__ uint32_t tie_mask(const Source& in, int64_t at, const Divisor& divisor, uint32_t threshold) {
  const int count = count_at(in.numel, at);
  uint32_t scores[kLane], ties = 0;
  load_scores<kN>(in, at, count, divisor, scores);
#pragma unroll
  for (int j = 0; j < kLane; ++j) ties |= static_cast<uint32_t>(j < count && scores[j] == threshold) << j;
  return ties;
}

// Writes the index of the `wanted`-th tie (from 1) from `begin` on to *tie_limit; all threads of a CTA call it.
template <int kN, class Source>
__device__ void find_tie(const Source& in, const Divisor& divisor, uint32_t threshold, int64_t begin, int64_t wanted,
                         int64_t* tie_limit) {
  __shared__ uint32_t counts[kThreads];
  for (int64_t at = begin; at < in.numel; at += kThreads * kLane) {
    const uint32_t mask = tie_mask<kN>(in, at + threadIdx.x * kLane, divisor, threshold);
    counts[threadIdx.x] = __popc(mask);
    __syncthreads();
    int64_t before = 0, all = 0;
    for (int t = 0; t < kThreads; ++t) {
      before += t < static_cast<int>(threadIdx.x) ? counts[t] : 0;
      all += counts[t];
    }
    uint32_t rest = mask;
    for (int64_t n = before; rest; ++n, rest &= rest - 1) {
      if (n + 1 == wanted) *tie_limit = at + threadIdx.x * kLane + __ffs(static_cast<int>(rest)) - 1;
    }
    __syncthreads();
    if (all >= wanted) return;
    wanted -= all;
  }
}

}  // namespace fuseo1
#endif  // FUSEO1_CUDA_TIES_CUH_
