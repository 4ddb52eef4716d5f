// SPDX-License-Identifier: Apache-2.0
// The pass over a whole tensor.
#ifndef FUSEO1_CUDA_SCAN_CUH_
#define FUSEO1_CUDA_SCAN_CUH_

#include "energy.cuh"
#include "slots.cuh"
#include "threshold.cuh"

namespace fuseo1 {

// For select_topk 1 (and 0, where the energies do not matter): no scores are needed.
template <int kN, class In>
__global__ void __launch_bounds__(kThreads, 1) energy_all(const __grid_constant__ Inputs in, State* state) {
  __shared__ Sums<kN> sums;
  sums.clear();
  __syncthreads();
  for_each_block(in.numel, [&](int64_t at, int count) {
    Block<kN, In> block;
    Peaks<kN> peaks;
    if (load_block(in, at, count, state->nonfinite, &block, &peaks)) clamp(in, &block, &peaks);
    add_energies(block, peaks, Chosen(0xffu), in.targets, &sums);
  });
  __syncthreads();
  sums.flush(&state->energy[0]);
}

// Adds how many of a warp's scores are not 0, and how many lie above the bracket; each lane passes its own.
__device__ __forceinline__ void add_counts(State* state, uint32_t nonzero, uint32_t above) {
  const uint32_t warp_nonzero = warp_sum(nonzero), warp_above = warp_sum(above);
  if (threadIdx.x % kWarp == 0) {
    atomicAdd(&state->nonzero, static_cast<Count>(warp_nonzero));
    atomicAdd(&state->above, static_cast<Count>(warp_above));
  }
}

// The filter's answers for a lane's elements: those above the bracket for certain, and, a bit each, those that are not
// 0 and those that are open. The score itself decides the open ones.
struct Sides {
  Chosen above;
  uint32_t nonzero, open;

  template <int kN, class In>
  __device__ __forceinline__ Sides(const ScoreFilter& filter, const Block<kN, In>& block, int targets)
      : above(0), nonzero(0xffu), open(0) {
    ScoreRange ranges[kLane];
    uint32_t within = 0;  // its sign bit: some element is neither above nor below
    int least = kInfBits;
#pragma unroll
    for (int j = 0; j < kLane; ++j) {
      ranges[j] = filter.range(block, j, targets);
      const uint32_t to_above = filter.to_above(ranges[j]), from_below = filter.from_below(ranges[j]);
      above.of[j] = to_above >> 31;
      within |= ~(to_above | from_below);
      least = min(least, static_cast<int>(__float_as_uint(ranges[j].least)));
    }
    const bool all_nonzero = least > static_cast<int>(kLeastFilteredBits);
    if (!(within >> 31) && all_nonzero) return;
#pragma unroll
    for (int j = 0; j < kLane; ++j) {
      open |= ~(filter.to_above(ranges[j]) | filter.from_below(ranges[j])) >> 31 << j;
    }
    if (all_nonzero) return;
#pragma unroll
    for (int j = 0; j < kLane; ++j) {
      if (ranges[j].least > kLeastFiltered) continue;
      const uint32_t bit = 1u << j;
      const bool zero = certainly_zero(block, j, targets);
      nonzero = zero ? nonzero & ~bit : nonzero;
      open = zero ? open & ~bit : open | bit;
    }
  }
};

// Adds the energies above the bracket; keeps the candidates inside it.
template <int kN, class In>
__global__ void __launch_bounds__(kThreads, 1)
    scan(const __grid_constant__ Inputs in, State* state, Candidates candidates, double select_topk) {
  __shared__ Sums<kN> sums;
  sums.clear();
  __syncthreads();
  const uint32_t low = state->low, high = state->high;
  const Divisor divisor(number_of<kN>(in.targets));
  const ScoreFilter filter(number_of<kN>(in.targets), low, high);
  Slots slots;
  uint32_t nonzero = 0, above = 0;  // of a lane; a tensor of 2^40 elements leaves a lane less than 2^32
  for_each_block(in.numel, [&](int64_t at, int count) {
    Block<kN, In> block;
    Peaks<kN> peaks;
    const bool rare = load_block(in, at, count, state->nonfinite, &block, &peaks);
    Sides sides(filter, block, in.targets);
    if (rare) sides.above = Chosen(0), sides.open = 0xffu;
    const bool any = __any_sync(kAllLanes, sides.open != 0);
    if (any) {
#pragma unroll
      for (int j = 0; j < kLane; ++j) {
        const bool mine = sides.open >> j & 1u;
        if (!__any_sync(kAllLanes, mine)) continue;
        const uint32_t score = block.score_of(j, divisor, in.targets), bit = 1u << j;
        if (mine) sides.above.of[j] = score > high;
        if (mine && score == 0) sides.nonzero &= ~bit;
        slots.append(candidates, state, in, score, mine && score >= low && score <= high, at + j);
      }
    }
    if (rare) clamp(in, &block, &peaks);
    if (any) keep_exponents(candidates, in.targets, peaks, at);
    nonzero += __popc(sides.nonzero), above += sides.above.count();
    add_energies(block, peaks, sides.above, in.targets, &sums);
  });
  slots.finish(candidates, state);
  add_counts(state, nonzero, above);
  __syncthreads();
  sums.flush(&state->energy[0]);
  if (is_last_cta(state)) begin_threshold(state, candidates.capacity, select_topk);
}

}  // namespace fuseo1
#endif  // FUSEO1_CUDA_SCAN_CUH_
