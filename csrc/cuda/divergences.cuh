// SPDX-License-Identifier: Apache-2.0
// The survey of divergences (include/fuseo1/survey.h): a warp computes a row's, reading the row three times.
#ifndef FUSEO1_CUDA_DIVERGENCES_CUH_
#define FUSEO1_CUDA_DIVERGENCES_CUH_

#include <float.h>

#include "block.cuh"
#include "exp_log.cuh"
#include "state.cuh"

namespace fuseo1 {

constexpr int kSumLanes = 8;  // of survey.h: element j of a row is added to lane j mod 8, in order

// Adds the terms of a warp's consecutive elements to the sums of the contract's lanes; a thread has that of its number
// mod 8. A term without an element is 0, which changes no sum.
__device__ __forceinline__ double add_in_order(double sum, double term) {
  const int lane = static_cast<int>(threadIdx.x) % kSumLanes;
#pragma unroll
  for (int from = 0; from < kWarp; from += kSumLanes) {
    sum = __dadd_rn(sum, __shfl_sync(kAllLanes, term, from + lane));
  }
  return sum;
}

// Adds the lanes' sums by halves; all threads get the result.
__device__ __forceinline__ double add_lanes(double sum) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int half = kSumLanes / 2; half; half /= 2) {
    sum = __dadd_rn(sum, __shfl_sync(kAllLanes, sum, (lane + half) % kWarp));
  }
  return __shfl_sync(kAllLanes, sum, 0);
}

// The largest of the threads' numbers, none of which is NaN.
__device__ __forceinline__ float warp_largest(float x) {
  const uint32_t bits = __float_as_uint(x);
  // As bits that have the order of the numbers.
  const uint32_t most = warp_max(bits & 0x80000000u ? ~bits : bits | 0x80000000u);
  return __uint_as_float(most & 0x80000000u ? most & 0x7fffffffu : ~most);
}

// A pair of elements of base and target.
struct Pair {
  float base, target;
  bool takes_part;  // d is finite

  // Element i of the n from `start` on, if i < n.
  __device__ __forceinline__ Pair(const Inputs& in, int64_t start, int64_t i, int64_t n)
      : base(0.0f), target(0.0f), takes_part(false) {
    if (i >= n) return;
    base = load_one(in.operands[0], start + i), target = load_one(in.operands[1], start + i);
    takes_part = isfinite(__fsub_rn(target, base));
  }
};

__device__ __forceinline__ double exponential(float x, float most) {
  return exp_of(__dsub_rn(static_cast<double>(x), static_cast<double>(most)));
}

// e / sum, plus 1e-8.
__device__ __forceinline__ double share_of(double e, double sum) { return __dadd_rn(__ddiv_rn(e, sum), 1e-8); }

// Writes the divergences of rows of `row` elements; counts elements that are not finite, and the contract's one read.
__global__ void __launch_bounds__(kThreads, 1)
    find_divergences(const __grid_constant__ Inputs in, int64_t row, float* divergences, fuseo1_cuda_sums* result) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t rows = in.numel / row, warps = static_cast<int64_t>(gridDim.x) * kWarps;
  if (blockIdx.x == 0 && threadIdx.x == 0) result->passes = 1;
  for (int64_t r = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp; r < rows; r += warps) {
    const int64_t start = r * row;
    float base_most = -FLT_MAX, target_most = -FLT_MAX;
    for (int64_t i = lane; i < row; i += kWarp) {
      const Pair pair(in, start, i, row);
      if (pair.takes_part) {
        base_most = fmaxf(base_most, pair.base), target_most = fmaxf(target_most, pair.target);
      } else {
        count_causes(in, start + i, reinterpret_cast<Count*>(result->nonfinite));
      }
    }
    base_most = warp_largest(base_most), target_most = warp_largest(target_most);
    double base_sum = 0.0, target_sum = 0.0;
    for (int64_t at = 0; at < row; at += kWarp) {
      const Pair pair(in, start, at + lane, row);
      base_sum = add_in_order(base_sum, pair.takes_part ? exponential(pair.base, base_most) : 0.0);
      target_sum = add_in_order(target_sum, pair.takes_part ? exponential(pair.target, target_most) : 0.0);
    }
    base_sum = add_lanes(base_sum), target_sum = add_lanes(target_sum);
    double sum = 0.0;
    for (int64_t at = 0; at < row; at += kWarp) {
      const Pair pair(in, start, at + lane, row);
      double term = 0.0;
      if (pair.takes_part) {
        const double p = share_of(exponential(pair.target, target_most), target_sum);
        const double q = share_of(exponential(pair.base, base_most), base_sum);
        term = __dmul_rn(p, log_of(__ddiv_rn(p, q)));
      }
      sum = add_in_order(sum, term);
    }
    sum = add_lanes(sum);
    if (lane == 0) divergences[r] = sum > 0.0 ? __double2float_rn(sum) : 0.0f;
  }
}

}  // namespace fuseo1
#endif  // FUSEO1_CUDA_DIVERGENCES_CUH_
