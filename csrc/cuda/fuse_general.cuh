// SPDX-License-Identifier: Apache-2.0
// fuse by any parameters of include/fuseo1/fuse.h.
#ifndef FUSEO1_CUDA_FUSE_GENERAL_CUH_
#define FUSEO1_CUDA_FUSE_GENERAL_CUH_

#include "fuse.cuh"
#include "select.cuh"

namespace fuseo1 {

// kHow: the election of parameters without a mask by score, or kAnyElection for all parameters.
template <int kN, class In, int kHow>
__global__ void __launch_bounds__(kThreads, kHow == kAnyElection ? 1 : held_at_once<kN>())
    fuse_general(const __grid_constant__ Inputs in, const __grid_constant__ FuseParams given,
                 const __grid_constant__ Selects selects, int64_t offset, Output out, Count* written) {
  // In shared memory, whose lanes may look up different factors.
  __shared__ FuseParams params;
  if (threadIdx.x == 0) params = given;
  __syncthreads();
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * kWarps;
  const auto select = [&](Block<kN, In>* block, int64_t at, int count) {
    if (!selects.any) return;
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      if (is_target<kN>(i, in.targets)) apply_select(selects.of[i], at, offset + at, count, block->d[i]);
    }
  };
  const bool masked = kHow == kAnyElection && given.masked;
  const uint32_t nonfinite = fuse_blocks<kN, kHow, In>(in, params, masked, offset, out, warp, warps, select);
  if (nonfinite) atomicAdd(written, static_cast<Count>(nonfinite));
}

}  // namespace fuseo1
#endif  // FUSEO1_CUDA_FUSE_GENERAL_CUH_
