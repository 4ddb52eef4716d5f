// SPDX-License-Identifier: Apache-2.0
// From the candidates to the threshold: the last selected of them, found digit by digit.
#ifndef FUSEO1_CUDA_THRESHOLD_CUH_
#define FUSEO1_CUDA_THRESHOLD_CUH_

#include "energy.cuh"

namespace fuseo1 {

// --- after the scan; one thread of the last CTA ---

// Decides from the scan's counts where to search for the last selected element.
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

// --- kernels whose CTAs wait for each other, and each work out what follows from the counts of all ---

// A search for the last selected word, digit by digit: what is found, how many of the words that begin so are selected,
// and how many there are.
template <class Word>
struct Search {
  Word found;
  int64_t wanted;
  Count ties;

  // Finds the next digit from the CTAs' counts of it. `step`: the histogram of all. Waits for the grid.
  __device__ __forceinline__ void advance(const Digit<Word>& digit, const Histogram& mine, State* state, int step) {
    Count* const all = state->histograms[step];
    __syncthreads();
    mine.flush(all);
    wait_for_grid();
    const int reached = reach_from_top(all, &wanted);
    found = digit.append(reached), ties = all[reached];
  }
  __device__ __forceinline__ bool cut() const { return wanted < static_cast<int64_t>(ties); }
};

__device__ __forceinline__ int64_t filled(const State* state, const Candidates& candidates) {
  return min(static_cast<int64_t>(state->slots), candidates.capacity);
}

// Writes the threshold, and returns the least selected word. If ties are cut all of its digits are found, else those of
// its score. All threads of the grid call it; it waits for the grid.
__device__ __forceinline__ uint64_t find_last(State* state, const Candidates& candidates, int64_t numel) {
  __shared__ Histogram histogram;
  const uint32_t low = state->low, high = state->high;
  const int digits = kScoreDigits + candidates.place_bits / kDigitBits;
  Search<uint64_t> last = {0, state->wanted, state->candidates};
  bool cut = false;
#pragma unroll 1
  for (int index = 0; index < digits; ++index) {
    const Digit<uint64_t> digit(index, last.found, candidates.place_bits);
    const int below = digit.shift - candidates.place_bits;  // bits of the score
    if (below >= 0 && low >> below == high >> below) {
      last.found = low >> below;  // all candidates have this digit
    } else {
      histogram.clear();
      __syncthreads();
      for_each(filled(state, candidates), [&](int64_t c) {
        const uint64_t word = candidates.words[c];
        if (word != 0) histogram.add(digit, word);
      });
      last.advance(digit, histogram, state, kCandidateSteps + index);
    }
    if (below == 0) cut = last.cut();
    if (below == 0 && !cut) break;
  }
  const uint64_t least = cut ? last.found : last.found << candidates.place_bits;
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    state->threshold = static_cast<uint32_t>(least >> candidates.place_bits);
    state->tie_limit = numel - 1 - (cut ? static_cast<int64_t>(place_of(least, candidates)) : 0);
  }
  return least;
}

// Finds the threshold, and adds the energies of the selected candidates.
template <int kN>
__global__ void __launch_bounds__(kThreads, 1)
    finish_candidates(const __grid_constant__ Inputs in, State* state, Candidates candidates) {
  if (state->failed || state->selected == 0) return;
  __shared__ Sums<kN> sums;
  sums.clear();
  __syncthreads();
  const uint64_t least = find_last(state, candidates, in.numel);
  for_each(filled(state, candidates), [&](int64_t c) {
    const uint64_t word = candidates.words[c];
    if (word < least) return;
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
      if (quantum) sums.bins[i][of_block[i]].add(quantum);
    }
  });
  __syncthreads();
  sums.flush(&state->energy[0]);
}

}  // namespace fuseo1
#endif  // FUSEO1_CUDA_THRESHOLD_CUH_
