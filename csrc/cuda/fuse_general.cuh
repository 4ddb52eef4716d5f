// SPDX-License-Identifier: Apache-2.0
// fuse by any parameters of include/fuseo1/fuse.h.
#ifndef FUSEO1_CUDA_FUSE_GENERAL_CUH_
#define FUSEO1_CUDA_FUSE_GENERAL_CUH_

#include "fuse.cuh"
#include "select.cuh"
#include "state.cuh"

namespace fuseo1 {

template <int kN, class In>
__global__ void __launch_bounds__(kThreads, held_at_once<kN, In>())
    fuse_general(const __grid_constant__ Inputs in, const __grid_constant__ FuseParams given,
                 const __grid_constant__ Selects selects, int64_t offset, Output out, Count* written) {
  // In shared memory, whose lanes may look up different factors.
  __shared__ FuseParams params;
  if (threadIdx.x == 0) params = given;
  __syncthreads();
  const Divisor divisor(in.targets);
  const Filter<kN, false> filter(params, in.targets);
  uint32_t nonfinite = 0;
  for_each_block(in.numel, [&](int64_t at, int count) {
    Block<kN, In> block;
    block.load(in, at, count);
    uint32_t kept = 0xffu;
    if (given.masked) {
      uint32_t scores[kLane];
      block.score(divisor, in.targets, scores);
      kept = cut_mask(scores, offset + at, given.threshold, given.tie_limit);
    }
    if (selects.any) {
#pragma unroll
      for (int i = 0; i < kN; ++i) {
        if (is_target<kN>(i, in.targets)) apply_select(selects.of[i], at, offset + at, count, block.d[i]);
      }
    }
    nonfinite += merge_to(out, params, filter, block, in.targets, kept, at, count);
  });
  if (nonfinite) atomicAdd(written, static_cast<Count>(nonfinite));
}

}  // namespace fuseo1
#endif  // FUSEO1_CUDA_FUSE_GENERAL_CUH_
