// SPDX-License-Identifier: Apache-2.0
// fuse by SCE's parameters, which a survey left on the device.
#ifndef FUSEO1_CUDA_FUSE_SCE_CUH_
#define FUSEO1_CUDA_FUSE_SCE_CUH_

#include "fuse.cuh"

namespace fuseo1 {

// Makes *params, in shared memory, from what a survey left. All threads of a CTA call it.
__device__ __forceinline__ void take_params(const fuseo1_cuda_params& given, int targets, FuseParams* params) {
  const int i = static_cast<int>(threadIdx.x);
  if (i < targets) params->weights[i] = params->shares[i] = given.weights[i];
  if (i == 0) {
    params->divisor = 0.0, params->floor = given.floor_divisor, params->scale = params->base_scale = 1.0;
    params->elect = FUSEO1_ELECT_SUM, params->masked = given.masked, params->has_alone = false;
    params->threshold = given.threshold, params->tie_limit = given.tie_limit;
  }
  __syncthreads();
  const FilterTerms terms = params->terms(targets);
  params->filter.set_factors(terms, i, kThreads);
  __syncthreads();
  if (i == 0) params->filters = params->filter.set(terms);
  __syncthreads();
}

// fuse_blocks by SCE's parameters.
template <int kN, class In>
__device__ __forceinline__ uint32_t fuse_sce(const Inputs& in, const FuseParams& params, int64_t offset,
                                             const Output& out, int64_t warp, int64_t warps) {
  const auto all = [](Block<kN, In>*, int64_t, int) {};  // z is d
  // Two loops: the usual one asks nothing about scores.
  return params.masked ? fuse_blocks<kN, kSce, In>(in, params, true, offset, out, warp, warps, all)
                       : fuse_blocks<kN, kSce, In>(in, params, false, offset, out, warp, warps, all);
}

template <int kN, class In>
__global__ void __launch_bounds__(kThreads, held_at_once<kN>())
    fuse(const __grid_constant__ Inputs in, const fuseo1_cuda_params* given, int64_t offset, Output out,
         fuseo1_cuda_survey* result) {
  __shared__ FuseParams params;
  take_params(*given, in.targets, &params);
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * kWarps;
  const uint32_t nonfinite = fuse_sce<kN, In>(in, params, offset, out, warp, warps);
  if (nonfinite && result) atomicAdd(reinterpret_cast<Count*>(&result->written), static_cast<Count>(nonfinite));
}

}  // namespace fuseo1
#endif  // FUSEO1_CUDA_FUSE_SCE_CUH_
