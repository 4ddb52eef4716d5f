// SPDX-License-Identifier: Apache-2.0
// Elements that take no part in a survey because their s is not finite, for kernels that hold no block of all targets.
#ifndef FUSEO1_CUDA_NONFINITE_CUH_
#define FUSEO1_CUDA_NONFINITE_CUH_

#include "instances.cuh"
#include "launch.cuh"
#include "select.cuh"

namespace fuseo1 {

// From this magnitude on, 2^122 as fp32 bits, a sum of the most targets' d may overflow; d may also be infinite or NaN.
constexpr uint32_t kDoubtfulBits = 0x7c800000u;

// Whether any element's s is not finite, from the counts of an earlier launch.
__device__ __forceinline__ bool any_nonfinite(const Count* counts) {
  Count all = 0;
  for (int i = 0; i < FUSEO1_CUDA_MAX_TARGETS + 2; ++i) all |= counts[i];
  return all != 0;
}

// A bit for each of a lane's elements whose s is not finite: element by element, for rare paths. Counts the causes in
// `counts` (unless nullptr).
__device__ __forceinline__ uint32_t excluded_mask(const Inputs& in, int64_t at, int count, Count* counts) {
  uint32_t excluded = 0;
  for (int j = 0; j < count; ++j) {
    const float base = load_one(in.operands[0], at + j);
    float s = -0.0f;
    for (int i = 1; i <= in.targets; ++i) s = __fadd_rn(s, __fsub_rn(load_one(in.operands[i], at + j), base));
    if (isfinite(s)) continue;
    excluded |= 1u << j;
    if (counts) count_causes(in, at + j, counts);
  }
  return excluded;
}

// Counts these elements in one read of all inputs.
template <class In>
__global__ void __launch_bounds__(kThreads, 1) count_nonfinite(const __grid_constant__ Inputs in, Count* counts) {
  for_each_block(in.numel, [&](int64_t at, int count) {
    const typename In::Raw base = In::load(in.operands[0], at, count);
    uint32_t most = 0;
#pragma unroll 4
    for (int i = 1; i <= in.targets; ++i) {
      const typename In::Raw x = In::load(in.operands[i], at, count);
#pragma unroll
      for (int j = 0; j < kLane; ++j) {
        const float d = __fsub_rn(In::widen(x, in.operands[i].dtype, j), In::widen(base, in.operands[0].dtype, j));
        most = max(most, magnitude_bits(d));
      }
    }
    if (warp_max(most) >= kDoubtfulBits) excluded_mask(in, at, count, counts);
  });
}

inline int launch_count(const Inputs& in, Count* counts, void* stream) {
  return launch("count_nonfinite", in, all_bf16(in) ? count_nonfinite<AllBf16> : count_nonfinite<Mixed>, blocks_of(in),
                stream, in, counts);
}

}  // namespace fuseo1
#endif  // FUSEO1_CUDA_NONFINITE_CUH_
