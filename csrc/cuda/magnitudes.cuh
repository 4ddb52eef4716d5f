// SPDX-License-Identifier: Apache-2.0
// The survey of magnitudes (include/fuseo1/survey.h), one target and one rank at a time: SCE's threshold search, with
// |d| as scores and a given rank.
#ifndef FUSEO1_CUDA_MAGNITUDES_CUH_
#define FUSEO1_CUDA_MAGNITUDES_CUH_

#include "one_target.cuh"
#include "scan.cuh"
#include "sums.cuh"

namespace fuseo1 {

// The overloads for bracket.cuh and exact.cuh.
template <int kN>
__device__ __forceinline__ void load_scores(const OneTarget& in, int64_t at, int count, const Divisor&,
                                            uint32_t* scores) {
  load_magnitudes<Mixed>(in, *in.doubtful, at, at, count, scores);
}

// The rank counts all elements, so a sample keeps zeros too, as the smallest magnitude.
__device__ __forceinline__ uint32_t sampled(const OneTarget&, uint32_t score) { return max(score, 1u); }

// As begin_threshold, for the k-th largest. If k reaches all that are not 0, there is nothing to find; `by_rows` (with
// factors), only if k exceeds them.
__device__ __forceinline__ void begin_rank(State* state, int64_t capacity, int64_t k, bool by_rows) {
  if (threadIdx.x != 0) return;
  const bool all = k - by_rows >= static_cast<int64_t>(state->nonzero);
  state->passes = 1;
  state->selected = all ? 0 : k;
  state->threshold = all ? 0 : kNothing, state->tie_limit = -1;
  if (!all) seek_last(state, capacity);
}

// Keeps the elements inside the bracket, counts those above it.
template <class In>
__global__ void __launch_bounds__(kThreads, 1)
    scan_magnitudes(const __grid_constant__ OneTarget in, State* state, Candidates candidates, int64_t k) {
  const uint32_t low = state->low, high = state->high;
  const bool doubtful = *in.doubtful;
  Slots slots;
  uint32_t nonzero = 0, above = 0;  // of a lane, as in scan
  for_each_block(in.numel, [&](int64_t at, int count) {
    uint32_t scores[kLane];
    bool any = false;
    load_magnitudes<In>(in, doubtful, at, at, count, scores);
#pragma unroll
    for (int j = 0; j < kLane; ++j) {
      nonzero += scores[j] != 0;
      above += scores[j] > high;
      any |= scores[j] >= low && scores[j] <= high;
    }
    if (!__any_sync(kAllLanes, any)) return;
#pragma unroll
    for (int j = 0; j < kLane; ++j) {
      slots.append(candidates, state, in, scores[j], scores[j] >= low && scores[j] <= high, at + j);
    }
  });
  slots.finish(candidates, state);
  add_counts(state, nonzero, above);
  if (is_last_cta(state)) begin_rank(state, candidates.capacity, k, in.rows.factors);
}

// Finds the threshold among the candidates.
static __global__ void __launch_bounds__(kThreads, 1)
    find_candidate(State* state, Candidates candidates, int64_t numel) {
  if (!state->failed && state->selected != 0) find_last(state, candidates, numel);
}

// One CTA each. First the counts of the first read; below, a cut, even of a tensor without elements.
__global__ void __launch_bounds__(kThreads, 1)
    settle_nonfinite(SumsWork* work, int32_t passes, fuseo1_cuda_sums* result) {
  settle_rest(work, passes, result);
  if (threadIdx.x == 0) work->doubtful = any_nonfinite(work->nonfinite);
}

__global__ void __launch_bounds__(kThreads, 1)
    settle_cut(const State* state, int64_t k, int64_t numel, fuseo1_cut* cut, fuseo1_cuda_sums* result) {
  if (threadIdx.x != 0) return;
  cut->threshold = k == 0 ? kNothing : numel == 0 ? 0 : state->threshold;
  cut->tie_limit = k == 0 || numel == 0 ? -1 : state->tie_limit;
  result->passes = max(result->passes, state->passes);
}

}  // namespace fuseo1
#endif  // FUSEO1_CUDA_MAGNITUDES_CUH_
