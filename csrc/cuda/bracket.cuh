// SPDX-License-Identifier: Apache-2.0
// The bracket: the range of scores in which a sample says that the threshold lies. One kernel, whose CTAs wait for each
// other; what follows from the sums of all of them, each works out for itself.
#ifndef FUSEO1_CUDA_BRACKET_CUH_
#define FUSEO1_CUDA_BRACKET_CUH_

#include "state.cuh"

namespace fuseo1 {

constexpr double kBracketDeviations = 4.0;  // standard deviations to each side

// Scores are loaded from a Source: Inputs, or magnitudes.cuh's OneTarget. `sampled` is the score that a sample keeps.
__device__ __forceinline__ uint32_t sampled(const Inputs&, uint32_t score) { return score; }

// Runs of eight elements, one lane's, are spread evenly over the tensor, each moved by a hash within its stretch.
__device__ __forceinline__ int64_t sample_start(int64_t numel, int64_t runs, int64_t run) {
  const int64_t stretch = numel / runs;
  const uint64_t hash = static_cast<uint64_t>(run + 1) * 0x9e3779b97f4a7c15u >> 33;
  return (run * stretch + static_cast<int64_t>(hash % static_cast<uint64_t>(stretch - kLane + 1))) / kLane * kLane;
}

// Keeps the scores of the runs in `sample`, and counts their first digits.
template <int kN, class Source>
__device__ __forceinline__ void take_sample(const Source& in, State* state, uint32_t* sample, int64_t runs,
                                            Histogram* histogram) {
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
      histogram->add(digit, scores[j]);
      ++present;
    }
  });
  if (present) atomicAdd(&state->present, static_cast<Count>(present));
  __syncthreads();
  histogram->flush(state->histograms[kSampleStep]);
}

// Counts each run's scores above the lower edge of the digit of the estimated threshold.
__device__ __forceinline__ void measure_runs(State* state, const uint32_t* sample, int64_t runs, double share) {
  __shared__ uint32_t sums[4];  // of a CTA: at most a few thousand runs
  const auto present = static_cast<int64_t>(state->present);
  uint32_t level = 0;
  if (present) {
    int64_t wanted = min(static_cast<int64_t>(share * static_cast<double>(present)), present - 1) + 1;
    level = static_cast<uint32_t>(reach_from_top(state->histograms[kSampleStep], &wanted)) << digit_shift(0);
  }
  if (threadIdx.x < 4) sums[threadIdx.x] = 0;
  __syncthreads();
  for_each(runs, [&](int64_t run) {
    uint32_t a = 0, p = 0;
    for (int j = 0; j < kLane; ++j) {
      a += sample[run * kLane + j] > level;
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
}

// A bound of the bracket: its first digit, and which of the scores with that digit (from 1) it is.
struct Bound {
  bool open;
  uint32_t digit;
  int64_t wanted;
};

// The upper bound, then the lower. A run's elements are neighbours, often of one row and so of one scale. So the random
// draw is of runs, and the variance is that of each run's count above the level, beyond its expected share
// (csrc/cpu/survey/sampling.h).
__device__ __forceinline__ void find_bounds(const State* state, double share, Bound* bounds) {
  const auto present = static_cast<int64_t>(state->present);
  const double m = static_cast<double>(present), rank = share * m;
  const double above = static_cast<double>(state->runs_a) / m;
  const double varies = static_cast<double>(state->runs_aa) - 2 * above * static_cast<double>(state->runs_ap) +
                        above * above * static_cast<double>(state->runs_pp);
  const double deviation = fmax(sqrt(rank * (1 - share)), sqrt(fmax(varies, 0.0)));
  const double margin = 16 + kBracketDeviations * deviation;
#pragma unroll
  for (int side = 0; side < 2; ++side) {
    const double at = side ? rank + margin : rank - margin;
    Bound& bound = bounds[side];
    bound = {present == 0 || at < 0 || at >= m, 0, 0};
    if (bound.open) continue;
    bound.wanted = static_cast<int64_t>(at) + 1;
    bound.digit = static_cast<uint32_t>(reach_from_top(state->histograms[kSampleStep], &bound.wanted));
  }
}

// Counts the second digits of the scores that have the first digit of a bound.
__device__ __forceinline__ void refine_bounds(State* state, const uint32_t* sample, int64_t scores, const Bound* bounds,
                                              Histogram* histograms) {
  for_each(scores, [&](int64_t i) {
    if (sample[i] == 0) return;
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      if (!bounds[side].open) histograms[side].add(Digit<uint32_t>(1, bounds[side].digit), sample[i]);
    }
  });
  __syncthreads();
#pragma unroll
  for (int side = 0; side < 2; ++side) histograms[side].flush(state->histograms[kBoundSteps + side]);
}

// Writes the bracket, in whole second digits; all threads of one CTA call it.
__device__ __forceinline__ void write_bracket(State* state, const Bound* bounds) {
  uint32_t edges[2] = {kInfBits, 1};
#pragma unroll
  for (int side = 0; side < 2; ++side) {
    if (bounds[side].open) continue;
    int64_t wanted = bounds[side].wanted;
    const Digit<uint32_t> digit(1, bounds[side].digit);
    const int reached = reach_from_top(state->histograms[kBoundSteps + side], &wanted);
    const uint32_t edge = digit.append(reached) << digit.shift;
    edges[side] = side ? max(edge, 1u) : edge | ((1u << digit.shift) - 1);
  }
  if (threadIdx.x == 0) state->high = edges[0], state->low = edges[1];
}

// Places the bracket around the score that a `share` of the elements reach. Waits for the grid.
template <int kN, class Source>
__global__ void __launch_bounds__(kThreads, 1)
    find_bracket(Source in, State* state, uint32_t* sample, int64_t runs, double share) {
  __shared__ Histogram histograms[2];
  histograms[0].clear(), histograms[1].clear();
  __syncthreads();
  take_sample<kN>(in, state, sample, runs, &histograms[1]);
  wait_for_grid();
  histograms[1].clear();
  measure_runs(state, sample, runs, share);
  wait_for_grid();
  Bound bounds[2];
  find_bounds(state, share, bounds);
  refine_bounds(state, sample, runs * kLane, bounds, histograms);
  if (is_last_cta(state)) write_bracket(state, bounds);
}

}  // namespace fuseo1
#endif  // FUSEO1_CUDA_BRACKET_CUH_
