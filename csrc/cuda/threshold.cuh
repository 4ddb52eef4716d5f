// SPDX-License-Identifier: Apache-2.0
// The threshold search: from the sample to the bracket, and from the candidates to the threshold. The last CTA of each
// launch decides, on the device.
#ifndef FUSEO1_CUDA_THRESHOLD_CUH_
#define FUSEO1_CUDA_THRESHOLD_CUH_

#include "energy.cuh"

namespace fuseo1 {

constexpr double kBracketDeviations = 4.0;  // standard deviations to each side

__device__ __forceinline__ void clear_histograms(State* state) {
  __syncthreads();
  for (int d = threadIdx.x; d < 2 * kDigits; d += blockDim.x) (&state->histogram[0][0])[d] = 0;
  __syncthreads();
}

// --- the bracket; all threads of the last CTA call each of these ---

// Sets the level at which the sample's runs are compared: the lower edge of the digit of the estimated threshold.
__device__ __forceinline__ void begin_bracket(State* state, double select_topk) {
  const auto present = static_cast<int64_t>(state->present);
  if (present == 0) return;
  int64_t wanted = min(static_cast<int64_t>(select_topk * static_cast<double>(present)), present - 1) + 1;
  const int digit = reach_from_top(state->histogram[0], &wanted);
  if (threadIdx.x == 0) state->level = static_cast<uint32_t>(digit) << digit_shift(0);
}

// A run's elements are neighbours, often of one row and so of one scale. So the random draw is of runs, and the
// variance is that of each run's count above the level, beyond its expected share (csrc/cpu/survey/sampling.h).
__device__ __forceinline__ void place_bracket(State* state, double select_topk) {
  const auto present = static_cast<int64_t>(state->present);
  const double m = static_cast<double>(present), rank = select_topk * m;
  const double share = static_cast<double>(state->runs_a) / m;
  const double varies = static_cast<double>(state->runs_aa) - 2 * share * static_cast<double>(state->runs_ap) +
                        share * share * static_cast<double>(state->runs_pp);
  const double deviation = fmax(sqrt(rank * (1 - select_topk)), sqrt(fmax(varies, 0.0)));
  const double margin = 16 + kBracketDeviations * deviation;
  for (int side = 0; side < 2; ++side) {
    const double at = side ? rank + margin : rank - margin;
    const bool open = present == 0 || at < 0 || at >= m;
    int64_t wanted = open ? 0 : static_cast<int64_t>(at) + 1;
    const int digit = open ? -1 : reach_from_top(state->histogram[0], &wanted);
    if (threadIdx.x == 0) state->prefix[side] = static_cast<uint32_t>(digit), state->rank[side] = wanted - 1;
  }
  clear_histograms(state);
}

__device__ __forceinline__ void end_bracket(State* state) {
  uint32_t bounds[2] = {kInfBits, 1};
  for (int side = 0; side < 2; ++side) {
    if (state->prefix[side] == 0xffffffffu) continue;
    int64_t wanted = state->rank[side] + 1;
    const Digit<uint32_t> digit(1, state->prefix[side]);
    const uint32_t edge = digit.append(reach_from_top(state->histogram[side], &wanted)) << digit.shift;
    bounds[side] = side ? max(edge, 1u) : edge | ((1u << digit.shift) - 1);
  }
  if (threadIdx.x == 0) state->high = bounds[0], state->low = bounds[1];
  clear_histograms(state);
}

static __global__ void __launch_bounds__(kThreads, 1)
    measure_runs(State* state, const uint32_t* sample, int64_t runs, double select_topk) {
  __shared__ uint32_t sums[4];  // of a CTA: at most a few thousand runs
  if (threadIdx.x < 4) sums[threadIdx.x] = 0;
  __syncthreads();
  for_each(runs, [&](int64_t run) {
    uint32_t a = 0, p = 0;
    for (int j = 0; j < kLane; ++j) {
      a += sample[run * kLane + j] > state->level;
      p += sample[run * kLane + j] != 0;
    }
    atomicAdd(&sums[0], a * a), atomicAdd(&sums[1], a * p), atomicAdd(&sums[2], p * p);
    atomicAdd(&sums[3], a);
  });
  __syncthreads();
  if (threadIdx.x == 0) {
    atomicAdd(&state->runs_aa, static_cast<Count>(sums[0]));
    atomicAdd(&state->runs_ap, static_cast<Count>(sums[1]));
    atomicAdd(&state->runs_pp, static_cast<Count>(sums[2]));
    atomicAdd(&state->runs_a, static_cast<Count>(sums[3]));
  }
  if (is_last_cta(state)) place_bracket(state, select_topk);
}

static __global__ void __launch_bounds__(kThreads, 1)
    refine_bracket(State* state, const uint32_t* sample, int64_t scores) {
  __shared__ Histogram histograms[2];
  histograms[0].clear(), histograms[1].clear();
  __syncthreads();
  for_each(scores, [&](int64_t i) {
    if (sample[i] == 0) return;
    for (int side = 0; side < 2; ++side) histograms[side].add(Digit<uint32_t>(1, state->prefix[side]), sample[i]);
  });
  __syncthreads();
  histograms[0].flush(state->histogram[0]), histograms[1].flush(state->histogram[1]);
  if (is_last_cta(state)) end_bracket(state);
}

// --- the threshold; the last CTA again ---

// Decides from the scan's counts where to search for the last selected element; one thread.
__device__ __forceinline__ void seek_last(State* state, int64_t capacity) {
  state->wanted = state->selected - static_cast<int64_t>(state->above);
  state->missed = state->wanted < 1 || state->wanted > static_cast<int64_t>(state->candidates);
  state->failed = state->missed || static_cast<int64_t>(state->slots) > capacity;
  if (state->missed) state->wanted = state->selected, state->low = 1, state->high = kInfBits;
}

__device__ __forceinline__ void begin_threshold(State* state, int64_t capacity, double select_topk) {
  if (threadIdx.x != 0) return;
  state->passes = 1;
  state->selected = static_cast<int64_t>(floor(select_topk * static_cast<double>(state->nonzero)));
  state->threshold = kNothing, state->tie_limit = -1;
  if (state->selected == 0) return;
  seek_last(state, capacity);
}

// Finds the digit of the last selected element.
template <class Word>
__device__ __forceinline__ void end_digit(State* state, const Digit<Word>& digit) {
  int64_t wanted = state->wanted;
  const int reached = reach_from_top(state->histogram[0], &wanted);
  if (threadIdx.x == 0) {
    state->found = digit.append(reached);
    state->wanted = wanted;
    state->ties = state->histogram[0][reached];
  }
  clear_histograms(state);
}

// Sets the threshold, and whether its ties are cut.
__device__ __forceinline__ void end_threshold(State* state, uint32_t threshold, int64_t numel) {
  state->threshold = threshold;
  state->cut = state->wanted < static_cast<int64_t>(state->ties);
  if (!state->cut) state->tie_limit = numel - 1;
}

__device__ __forceinline__ int64_t filled(const State* state, const Candidates& candidates) {
  return min(static_cast<int64_t>(state->slots), candidates.capacity);
}

// Finds one digit of the last selected candidate: of its score, then, if not all of its ties are selected, of its
// place.
static __global__ void __launch_bounds__(kThreads, 1)
    count_candidates(State* state, Candidates candidates, int index, int64_t numel) {
  if (state->failed || state->selected == 0 || (index >= kScoreDigits && !state->cut)) return;
  __shared__ Histogram histogram;
  histogram.clear();
  __syncthreads();
  const Digit<uint64_t> digit(index, state->found, candidates.place_bits);
  for_each(filled(state, candidates), [&](int64_t c) {
    const uint64_t word = candidates.words[c];
    if (word != 0) histogram.add(digit, word);
  });
  __syncthreads();
  histogram.flush(state->histogram[0]);
  if (!is_last_cta(state)) return;
  end_digit(state, digit);
  if (threadIdx.x != 0) return;
  if (index == kScoreDigits - 1) end_threshold(state, static_cast<uint32_t>(state->found), numel);
  if (digit.shift == 0) state->tie_limit = numel - 1 - static_cast<int64_t>(place_of(state->found, candidates));
}

// Adds the energies of the selected candidates.
template <int kN>
__global__ void __launch_bounds__(kThreads, 1)
    finish_candidates(const __grid_constant__ Inputs in, State* state, Candidates candidates) {
  if (state->failed || state->selected == 0) return;
  __shared__ Sums<kN> sums;
  sums.clear();
  __syncthreads();
  // The least selected word: if ties are cut, all of its digits were found, else those of its score.
  const uint64_t last = state->cut ? state->found : state->found << candidates.place_bits;
  for_each(filled(state, candidates), [&](int64_t c) {
    const uint64_t word = candidates.words[c];
    if (word < last) return;
    const int64_t at = in.numel - 1 - static_cast<int64_t>(place_of(word, candidates));
    const uint8_t* const exponents = candidates.exponents + at / kBlock * in.targets;
    const float base = load_one(in.operands[0], at);
    // All loads come before the first atomic, because the compiler cannot move loads past it.
    float d[kN];
    uint32_t of_block[kN];
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      if (i >= in.targets) continue;
      d[i] = clamp_square(__fsub_rn(load_one(in.operands[i + 1], at), base));
      of_block[i] = exponents[i];
    }
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      if (i >= in.targets) continue;
      const uint32_t quantum = quantum_of(__fmul_rn(d[i], d[i]), __uint_as_float(scale_bits(of_block[i])));
      if (quantum) atomicAdd(&sums.bins[i][of_block[i]], static_cast<Count>(quantum));
    }
  });
  __syncthreads();
  sums.flush(&state->energy[0]);
}

}  // namespace fuseo1
#endif  // FUSEO1_CUDA_THRESHOLD_CUH_
