// SPDX-License-Identifier: Apache-2.0
// Many small tensors in one launch: a CTA surveys and fuses one. Its second and later reads come from the L2 cache.
#ifndef FUSEO1_CUDA_SMALL_CUH_
#define FUSEO1_CUDA_SMALL_CUH_

#include "energy.cuh"
#include "fuse_sce.cuh"
#include "ties.cuh"
#include "weights.cuh"

namespace fuseo1 {

// The threshold of a tensor, in shared memory.
struct SmallThreshold {
  uint32_t nonzero, threshold;
  int64_t selected, wanted, tie_limit;
};

// Finds the threshold by histograms of its digits.
template <int kN>
__device__ void find_threshold(const Inputs& in, double select_topk, SmallThreshold* found) {
  __shared__ Histogram histogram;
  const Divisor divisor(in.targets);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  if (threadIdx.x == 0) *found = {0, 0, 0, 0, -1};
  for (int index = 0; index < 3; ++index) {
    __syncthreads();
    histogram.clear();
    __syncthreads();
    const Digit<uint32_t> digit(index, found->threshold);
    uint32_t nonzero = 0;
    for_blocks(in.numel, warp, kWarps, [&](int64_t at, int count) {
      uint32_t scores[kLane];
      load_scores<kN>(in, at, count, divisor, scores);
#pragma unroll
      for (int j = 0; j < kLane; ++j) {
        if (j >= count) continue;
        nonzero += scores[j] != 0;
        histogram.add(digit, scores[j]);
      }
    });
    if (index == 0 && nonzero) atomicAdd(&found->nonzero, nonzero);
    __syncthreads();
    if (index == 0 && threadIdx.x == 0) {
      found->selected = static_cast<int64_t>(floor(select_topk * static_cast<double>(found->nonzero)));
      found->wanted = found->selected;
      if (found->selected == 0) found->threshold = kNothing;
    }
    __syncthreads();
    if (found->selected == 0) return;
    int64_t wanted = found->wanted;
    const int reached = reach_from_top(histogram.bins, &wanted);
    if (threadIdx.x == 0) {
      found->threshold = digit.append(reached);
      found->wanted = wanted;
    }
    if (digit.shift == 0) {
      const bool cut = wanted < static_cast<int64_t>(histogram.bins[reached]);
      __syncthreads();
      if (cut) {
        find_tie<kN>(in, divisor, found->threshold, 0, wanted, &found->tie_limit);
      } else if (threadIdx.x == 0) {
        found->tie_limit = in.numel - 1;
      }
    }
  }
  __syncthreads();
}

template <int kN>
__global__ void __launch_bounds__(kThreads, 1)
    merge_small(const fuseo1_cuda_tensor* tensors, int32_t targets, fuseo1_cuda_sce how, fuseo1_cuda_survey* results) {
  __shared__ Inputs in;
  __shared__ Sums<kN> sums;
  __shared__ SmallThreshold found;
  __shared__ Count nonfinite[FUSEO1_CUDA_MAX_TARGETS + 2];
  __shared__ fuseo1_cuda_params given;
  __shared__ FuseParams params;
  const fuseo1_cuda_tensor& tensor = tensors[blockIdx.x];
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp;
  if (thread <= targets) in.operands[thread] = tensor.operands[thread];
  if (thread < FUSEO1_CUDA_MAX_TARGETS + 2) nonfinite[thread] = 0;
  if (thread == 0) {
    in.targets = targets, in.numel = tensor.numel, in.aligned = 1;
    for (int i = 0; i <= targets; ++i) in.aligned &= aligned16(tensor.operands[i].data);
  }
  sums.clear();
  __syncthreads();
  const bool all = how.select_topk == 1.0, none = how.select_topk == 0.0 || in.numel == 0;
  if (all || none) {
    if (thread == 0) found = {0, all ? 0 : kNothing, all ? in.numel : 0, 0, all ? in.numel - 1 : -1};
    __syncthreads();
  } else {
    find_threshold<kN>(in, how.select_topk, &found);
  }

  const Divisor divisor(targets);
  for_blocks(in.numel, warp, kWarps, [&](int64_t at, int count) {
    Block<kN, Mixed> block;
    Peaks<kN> peaks;
    const bool rare = load_block(in, at, count, nonfinite, &block, &peaks);
    uint32_t selected = 0xffu;
    if (!all) {
      uint32_t scores[kLane];
      block.score(divisor, targets, scores);
      selected = cut_mask(scores, at, found.threshold, found.tie_limit);
    }
    if (rare) clamp(in, &block, &peaks);
    add_energies(block, peaks, Chosen(selected), targets, &sums);
  });
  __syncthreads();
  fuseo1_cuda_survey* const result = &results[blockIdx.x];
  if (thread < FUSEO1_CUDA_MAX_TARGETS) result->energy[thread] = thread < targets ? energy_of(sums.bins[thread]) : 0.0;
  if (thread < FUSEO1_CUDA_MAX_TARGETS + 2) result->nonfinite[thread] = nonfinite[thread];
  __syncthreads();
  if (thread == 0) {
    result->nonzero = all || none ? -1 : static_cast<int64_t>(found.nonzero);
    result->selected = found.selected;
    result->threshold = found.threshold;
    result->tie_limit = found.tie_limit;
    result->passes = in.numel > 0;
    result->written = 0;
    sce_params(result->energy, targets, in.numel, how, found.threshold, found.tie_limit, &given);
  }
  __syncthreads();
  take_params(given, targets, &params);
  const Output out = {tensor.out, tensor.out_dtype, aligned16(tensor.out)};
  const uint32_t written = fuse_sce<kN, Mixed>(in, params, 0, out, warp, kWarps);
  if (written) atomicAdd(reinterpret_cast<Count*>(&result->written), static_cast<Count>(written));
}

}  // namespace fuseo1
#endif  // FUSEO1_CUDA_SMALL_CUH_
