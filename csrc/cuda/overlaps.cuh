// SPDX-License-Identifier: Apache-2.0
// The survey of overlaps (include/fuseo1/survey.h): elements that a target has together with others, and alone.
#ifndef FUSEO1_CUDA_OVERLAPS_CUH_
#define FUSEO1_CUDA_OVERLAPS_CUH_

#include "norms.cuh"

namespace fuseo1 {

// The counts take the places of the norms' sums, as terms of quantum 1; settle_norms writes both.
template <int kN, class In>
__global__ void __launch_bounds__(kThreads, 1)
    add_overlaps(const __grid_constant__ Inputs in, const __grid_constant__ Selects selects, SumsWork* work) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  Count together = 0, alone = 0;  // of the target of the lane's number
  for_each_block(in.numel, [&](int64_t at, int count) {
    Block<kN, In> block;
    uint32_t exponents[kN];
    block.load(in, at, count);
    if (measure(block, in.targets, exponents)) block.sanitize(in, at, count, work->nonfinite);
    uint32_t has[kN], any = 0, several = 0;  // a bit for each element
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      has[i] = 0;
      if (!is_target<kN>(i, in.targets)) continue;
      apply_select(selects.of[i], at, at, count, block.d[i]);
#pragma unroll
      for (int j = 0; j < kLane; ++j) has[i] |= static_cast<uint32_t>(block.d[i][j] != 0.0f) << j;
      several |= any & has[i];
      any |= has[i];
    }
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      if (!is_target<kN>(i, in.targets)) continue;
      // Both counts of a block, at most 256 each, in one sum.
      const uint32_t both = __popc(has[i] & several) | static_cast<uint32_t>(__popc(has[i] & ~several)) << 16;
      const uint32_t of_warp = warp_sum(both);
      if (lane == i) together += of_warp & 0xffffu, alone += of_warp >> 16;
    }
  });
  if (lane >= in.targets) return;
  if (together) atomicAdd(&work->norms[0][lane][kUnits], together);
  if (alone) atomicAdd(&work->norms[1][lane][kUnits], alone);
}

}  // namespace fuseo1
#endif  // FUSEO1_CUDA_OVERLAPS_CUH_
