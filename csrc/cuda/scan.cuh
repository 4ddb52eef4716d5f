// SPDX-License-Identifier: Apache-2.0
// The passes over a whole tensor, and the sample before them.
#ifndef FUSEO1_CUDA_SCAN_CUH_
#define FUSEO1_CUDA_SCAN_CUH_

#include "energy.cuh"
#include "slots.cuh"
#include "threshold.cuh"
#include "ties.cuh"

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
    add_energies(block, peaks, 0xffu, in.targets, &sums);
  });
  __syncthreads();
  sums.flush(&state->energy[0]);
}

// Below, scores are loaded from a Source: Inputs, or magnitudes.cuh's OneTarget. `sampled` is the score that a sample
// keeps.
__device__ __forceinline__ uint32_t sampled(const Inputs&, uint32_t score) { return score; }

// Runs of eight elements, one lane's, are spread evenly over the tensor, each moved by a hash within its stretch.
__device__ __forceinline__ int64_t sample_start(int64_t numel, int64_t runs, int64_t run) {
  const int64_t stretch = numel / runs;
  const uint64_t hash = static_cast<uint64_t>(run + 1) * 0x9e3779b97f4a7c15u >> 33;
  return (run * stretch + static_cast<int64_t>(hash % static_cast<uint64_t>(stretch - kLane + 1))) / kLane * kLane;
}

template <int kN, class Source>
__global__ void __launch_bounds__(kThreads, 1)
    sample_scores(Source in, State* state, uint32_t* sample, int64_t runs, double select_topk) {
  __shared__ Histogram histogram;
  histogram.clear();
  __syncthreads();
  const Divisor divisor(in.targets);
  const Digit<uint32_t> digit(0, 0);
  uint32_t present = 0;
  for_each(runs, [&](int64_t run) {
    uint32_t scores[kLane];
    load_scores<kN>(in, sample_start(in.numel, runs, run), kLane, divisor, scores);
#pragma unroll
    for (int j = 0; j < kLane; ++j) {
      scores[j] = sampled(in, scores[j]);
      sample[run * kLane + j] = scores[j];
      if (scores[j] == 0) continue;
      histogram.add(digit, scores[j]);
      ++present;
    }
  });
  if (present) atomicAdd(&state->present, static_cast<Count>(present));
  __syncthreads();
  histogram.flush(state->histogram[0]);
  if (is_last_cta(state)) begin_bracket(state, select_topk);
}

// Adds how many of a warp's scores are not 0, and how many lie above the bracket; each lane passes its own.
__device__ __forceinline__ void add_counts(State* state, uint32_t nonzero, uint32_t above) {
  const uint32_t warp_nonzero = warp_sum(nonzero), warp_above = warp_sum(above);
  if (threadIdx.x % kWarp == 0) {
    atomicAdd(&state->nonzero, static_cast<Count>(warp_nonzero));
    atomicAdd(&state->above, static_cast<Count>(warp_above));
  }
}

// Adds the energies above the bracket; keeps the candidates inside it.
template <int kN, class In>
__global__ void __launch_bounds__(kThreads, 1)
    scan(const __grid_constant__ Inputs in, State* state, Candidates candidates, double select_topk) {
  __shared__ Sums<kN> sums;
  sums.clear();
  __syncthreads();
  const Divisor divisor(in.targets);
  const uint32_t low = state->low, high = state->high;
  Slots slots;
  uint32_t nonzero = 0, above = 0;  // of a lane; a tensor of 2^40 elements leaves a lane less than 2^32
  for_each_block(in.numel, [&](int64_t at, int count) {
    Block<kN, In> block;
    Peaks<kN> peaks;
    const bool rare = load_block(in, at, count, state->nonfinite, &block, &peaks);
    uint32_t scores[kLane];
    block.score(divisor, in.targets, scores);
    if (rare) clamp(in, &block, &peaks);
    uint32_t selected = 0, inside = 0;
#pragma unroll
    for (int j = 0; j < kLane; ++j) {
      nonzero += scores[j] != 0;
      if (scores[j] > high) {
        selected |= 1u << j;
      } else if (scores[j] >= low) {
        inside |= 1u << j;
      }
    }
    above += __popc(selected);
    add_energies(block, peaks, selected, in.targets, &sums);
    if (__any_sync(kAllLanes, inside != 0)) {
      keep_exponents(candidates, in.targets, peaks, at);
      slots.append(candidates, state, in, scores, inside, at);
    }
  });
  slots.finish(candidates, state);
  add_counts(state, nonzero, above);
  __syncthreads();
  sums.flush(&state->energy[0]);
  if (is_last_cta(state)) begin_threshold(state, candidates.capacity, select_topk);
}

// --- the exact path: kernels that return at once if the candidates sufficed. It considers only scores inside the
// bracket or, if the bracket missed, all that are not 0 ---

// Finds one digit of the threshold's distance from the bracket's lower bound. The first digits may be 0 for all scores.
template <int kN, class Source>
__global__ void __launch_bounds__(kThreads, 1) count_digits(Source in, State* state, int index) {
  const uint32_t low = state->low, width = state->high - low;
  const Digit<uint32_t> digit(kScoreDigits + index, static_cast<uint32_t>(state->found), kOffsetDigits * kDigitBits);
  if (!state->failed || (digit.shift > 0 && width >> digit.shift == 0)) return;
  __shared__ Histogram histogram;
  histogram.clear();
  __syncthreads();
  const Divisor divisor(in.targets);
  for_each_block(in.numel, [&](int64_t at, int count) {
    uint32_t scores[kLane];
    load_scores<kN>(in, at, count, divisor, scores);
#pragma unroll
    for (int j = 0; j < kLane; ++j) {
      if (j < count && scores[j] - low <= width) histogram.add(digit, scores[j] - low);
    }
  });
  __syncthreads();
  histogram.flush(state->histogram[0]);
  if (!is_last_cta(state)) return;
  end_digit(state, digit);
  if (threadIdx.x != 0) return;
  if (digit.shift == 0) end_threshold(state, low + static_cast<uint32_t>(state->found), in.numel);
  ++state->passes;
}

// Finds the last selected tie, if not all are: by counting ties in stretches, then within one of them.
template <int kN, class Source>
__global__ void __launch_bounds__(kThreads, 1) count_ties(Source in, State* state, uint32_t* stretches) {
  if (!state->failed || !state->cut) return;
  __shared__ uint32_t ties;
  const Divisor divisor(in.targets);
  const uint32_t threshold = state->threshold;
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
  if (!is_last_cta(state)) return;
  __shared__ int64_t stretch, wanted;
  if (threadIdx.x == 0) {
    stretch = 0, wanted = state->wanted;
    for (; wanted > stretches[stretch]; ++stretch) wanted -= stretches[stretch];
    ++state->passes;
  }
  __syncthreads();
  find_tie<kN>(in, divisor, threshold, stretch * kStretch, wanted, &state->tie_limit);
}

// Adds the energies of the selection, which is now known, except those that the scan has added.
template <int kN>
__global__ void __launch_bounds__(kThreads, 1) energy_selected(Inputs in, State* state) {
  if (!state->failed) return;
  __shared__ Sums<kN> sums;
  sums.clear();
  __syncthreads();
  const Divisor divisor(in.targets);
  const uint32_t threshold = state->threshold, high = state->high;
  const int64_t tie_limit = state->tie_limit;
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
    add_energies(block, peaks, selected, in.targets, &sums);
  });
  __syncthreads();
  sums.flush(&state->energy[state->missed]);
  if (threadIdx.x == 0 && blockIdx.x == 0) ++state->passes;
}

}  // namespace fuseo1
#endif  // FUSEO1_CUDA_SCAN_CUH_
