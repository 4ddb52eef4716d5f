// SPDX-License-Identifier: Apache-2.0
// The exact path: finds the threshold where the candidates did not suffice, by reads of the whole tensor. It considers
// only scores inside the bracket or, if the bracket missed, all that are not 0.
#ifndef FUSEO1_CUDA_EXACT_CUH_
#define FUSEO1_CUDA_EXACT_CUH_

#include "threshold.cuh"
#include "ties.cuh"

namespace fuseo1 {

// Counts a digit of the scores' distances from `low`, of at most `width`.
template <int kN, class Source>
__device__ __forceinline__ void count_digits(const Source& in, uint32_t low, uint32_t width,
                                             const Digit<uint32_t>& digit, Histogram* histogram) {
  const Divisor divisor(in.targets);
  histogram->clear();
  __syncthreads();
  for_each_block(in.numel, [&](int64_t at, int count) {
    uint32_t scores[kLane];
    load_scores<kN>(in, at, count, divisor, scores);
#pragma unroll
    for (int j = 0; j < kLane; ++j) {
      if (j < count && scores[j] - low <= width) histogram->add(digit, scores[j] - low);
    }
  });
}

// Counts ties by stretches.
template <int kN, class Source>
__device__ __forceinline__ void count_ties(const Source& in, uint32_t threshold, uint32_t* stretches) {
  __shared__ uint32_t ties;
  const Divisor divisor(in.targets);
  const int64_t count_of_stretches = (in.numel + kStretch - 1) / kStretch;
  for (int64_t s = blockIdx.x; s < count_of_stretches; s += gridDim.x) {
    if (threadIdx.x == 0) ties = 0;
    __syncthreads();
    uint32_t mine = 0;
    for (int64_t at = s * kStretch + threadIdx.x * kLane; at < min((s + 1) * kStretch, in.numel);
         at += kThreads * kLane) {
      mine += __popc(tie_mask<kN>(in, at, divisor, threshold));
    }
    if (mine) atomicAdd(&ties, mine);
    __syncthreads();
    if (threadIdx.x == 0) stretches[s] = ties;
    __syncthreads();
  }
}

// Writes the index of the `wanted`-th tie to *tie_limit; all threads of one CTA call it.
template <int kN, class Source>
__device__ __forceinline__ void find_last_tie(const Source& in, uint32_t threshold, int64_t wanted,
                                              const uint32_t* stretches, int64_t* tie_limit) {
  __shared__ int64_t stretch, rest;
  if (threadIdx.x == 0) {
    stretch = 0, rest = wanted;
    for (; rest > stretches[stretch]; ++stretch) rest -= stretches[stretch];
  }
  __syncthreads();
  find_tie<kN>(in, Divisor(in.targets), threshold, stretch * kStretch, rest, tie_limit);
}

// Adds the energies of the selection, except those that the scan has added.
template <int kN>
__device__ __forceinline__ void add_selected(const Inputs& in, State* state, uint32_t threshold, int64_t tie_limit) {
  __shared__ Sums<kN> sums;
  sums.clear();
  __syncthreads();
  const Divisor divisor(in.targets);
  const uint32_t high = state->high;
  for_each_block(in.numel, [&](int64_t at, int count) {
    Block<kN, Mixed> block;
    Peaks<kN> peaks;
    const bool rare = load_block(in, at, count, static_cast<Count*>(nullptr), &block, &peaks);
    uint32_t scores[kLane];
    block.score(divisor, in.targets, scores);
    if (rare) clamp(in, &block, &peaks);
    uint32_t selected = cut_mask(scores, at, threshold, tie_limit);
#pragma unroll
    for (int j = 0; j < kLane; ++j) {
      if (scores[j] > high) selected &= ~(1u << j);
    }
    add_energies(block, peaks, Chosen(selected), in.targets, &sums);
  });
  __syncthreads();
  sums.flush(&state->energy[state->missed]);
}

// The whole path: the threshold, digit by digit, the last selected tie, and (kEnergies) the energies. Returns at once
// if the candidates sufficed, else waits for the grid.
template <int kN, bool kEnergies, class Source>
__global__ void __launch_bounds__(kThreads, 1) find_exactly(Source in, State* state, uint32_t* stretches) {
  if (!state->failed) return;
  __shared__ Histogram histogram;
  const uint32_t low = state->low, width = state->high - low;
  Search<uint32_t> search = {0, state->wanted, 0};
  int reads = kEnergies;
#pragma unroll 1
  for (int index = 0; index < kOffsetDigits; ++index) {
    // The first digits may be 0 for all scores.
    const Digit<uint32_t> digit(kScoreDigits + index, search.found, kOffsetDigits * kDigitBits);
    if (digit.shift > 0 && width >> digit.shift == 0) continue;
    count_digits<kN>(in, low, width, digit, &histogram);
    search.advance(digit, histogram, state, kExactSteps + index);
    ++reads;
  }
  const uint32_t threshold = low + search.found;
  int64_t tie_limit = in.numel - 1;
  const bool first = blockIdx.x == 0;
  if (search.cut()) {
    count_ties<kN>(in, threshold, stretches);
    wait_for_grid();
    if (first) find_last_tie<kN>(in, threshold, search.wanted, stretches, &state->tie_limit);
    wait_for_grid();
    tie_limit = state->tie_limit;
    ++reads;
  } else if (first && threadIdx.x == 0) {
    state->tie_limit = tie_limit;
  }
  if constexpr (kEnergies) add_selected<kN>(in, state, threshold, tie_limit);
  if (first && threadIdx.x == 0) state->threshold = threshold, state->passes += reads;
}

}  // namespace fuseo1
#endif  // FUSEO1_CUDA_EXACT_CUH_
