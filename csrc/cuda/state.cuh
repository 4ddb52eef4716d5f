// SPDX-License-Identifier: Apache-2.0
// The numbers that a survey's kernels pass to each other in its workspace, and how CTAs wait for each other.
#ifndef FUSEO1_CUDA_STATE_CUH_
#define FUSEO1_CUDA_STATE_CUH_

#include <cooperative_groups.h>

#include "histogram.cuh"

namespace fuseo1 {

constexpr uint32_t kNothing = 0x7fffffffu;  // a threshold above every score
// The exact path counts ties by stretches of this many elements.
constexpr int64_t kStretch = 65536;
// Steps of a survey that count digits: of the sample, and towards both bounds of its bracket; of the candidates; on the
// exact path.
constexpr int kSampleStep = 0, kBoundSteps = 1, kCandidateSteps = 3;
constexpr int kExactSteps = kCandidateSteps + kScoreDigits + kOffsetDigits, kSteps = kExactSteps + kOffsetDigits;

struct State {
  Bins energy[2];  // [missed]: the scan's, which hold unless the bracket missed; those of the exact path if it did
  Count nonfinite[FUSEO1_CUDA_MAX_TARGETS + 2];
  Count nonzero, above;
  Count candidates, slots;            // how many were found; how many places were taken
  Count histograms[kSteps][kDigits];  // one a step, so that none is cleared
  // The sample, which gives the bracket: how many of its scores are not 0; sums over its runs, where a run has `a`
  // scores above a level and `p` that are not 0.
  Count present, runs_aa, runs_ap, runs_pp, runs_a;
  // Scores in [low, high] are candidates, scores above `high` are selected for certain.
  uint32_t low, high;
  // The threshold search, and its result.
  int64_t selected, wanted;  // k; how many of the candidates are selected
  int32_t failed, missed;    // candidates are left out, the exact path finds the threshold; it is not in the bracket
  uint32_t threshold;
  int64_t tie_limit;
  int32_t passes;
  uint32_t arrived;  // CTAs that have finished the current launch
};

// A candidate is a word: its score in the upper bits, and below it how many elements follow it in the tensor. So the
// selected candidates are the largest words, ties included. Their squares are read again, and quantized by the
// exponents that the scan kept of their block.
struct Candidates {
  uint64_t* words;
  uint8_t* exponents;  // [blocks][targets], of blocks that have candidates
  int64_t capacity;    // 0 if places need more than kMostPlaceBits
  int32_t place_bits;  // a multiple of kDigitBits
};
constexpr int kMostPlaceBits = 64 - kScoreBits;

__device__ __forceinline__ uint64_t place_of(uint64_t word, const Candidates& candidates) {
  return word & ((uint64_t{1} << candidates.place_bits) - 1);
}

// Whether the caller's CTA is the last of the grid to arrive here; it then sees everything that the others wrote
// before: each thread's fence before the barrier precedes, by thread 0's counting, each thread's fence of the last CTA.
__device__ __forceinline__ bool is_last_cta(State* state) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  // Counts from 0 again for the next launch.
  if (threadIdx.x == 0) last = atomicInc(&state->arrived, gridDim.x - 1) == gridDim.x - 1;
  __syncthreads();
  if (last) __threadfence();
  return last;
}

// Waits until all CTAs of the grid, which are launched together, have come here; they see what the others wrote before.
__device__ __forceinline__ void wait_for_grid() { cooperative_groups::this_grid().sync(); }

// Calls f(i) for every i below `n`, divided among the threads of a grid.
template <class F>
__device__ __forceinline__ void for_each(int64_t n, const F& f) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step) f(i);
}

// Calls f(at, count) for every `warps`-th block of 256 elements, from block `warp` on: a lane's first element, and how
// many of its eight exist.
template <class F>
__device__ __forceinline__ void for_blocks(int64_t numel, int64_t warp, int64_t warps, const F& f) {
  const int lane = threadIdx.x % kWarp;
  const int64_t blocks = (numel + kBlock - 1) / kBlock;
  for (int64_t b = warp; b < blocks; b += warps) {
    const int64_t at = b * kBlock + lane * kLane;
    f(at, count_at(numel, at));
  }
}

// The same for each warp of a grid that divides a tensor.
template <class F>
__device__ __forceinline__ void for_each_block(int64_t numel, const F& f) {
  for_blocks(numel, static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp,
             static_cast<int64_t>(gridDim.x) * kWarps, f);
}

}  // namespace fuseo1
#endif  // FUSEO1_CUDA_STATE_CUH_
