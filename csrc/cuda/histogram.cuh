// SPDX-License-Identifier: Apache-2.0
// A score is found digit by digit, from the top.
#ifndef FUSEO1_CUDA_HISTOGRAM_CUH_
#define FUSEO1_CUDA_HISTOGRAM_CUH_

#include "block.cuh"

namespace fuseo1 {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;
// Scores are 31 bits: histograms take their digits from the top, 11 bits, 11 bits, 9 bits.
constexpr int kDigits = 1 << 11;
FUSEO1_HOST_DEVICE constexpr int digit_shift(int digit) { return digit == 0 ? 20 : digit == 1 ? 9 : 0; }

using Count = unsigned long long;

// The digit to be found next, and those found above it.
struct Digit {
  int shift, above;  // their lowest bits
  uint32_t found;

  __device__ __forceinline__ Digit(int index, uint32_t found)
      : shift(digit_shift(index)), above(index ? digit_shift(index - 1) : 31), found(found) {}
  __device__ __forceinline__ bool follows(uint32_t score) const { return score >> above == found; }
  __device__ __forceinline__ uint32_t of(uint32_t score) const {
    return score >> shift & ((1u << (above - shift)) - 1);
  }
  // What is found when this one is.
  __device__ __forceinline__ uint32_t append(int reached) const {
    return found << (above - shift) | static_cast<uint32_t>(reached);
  }
};

// A CTA's histogram of one digit.
struct Histogram {
  uint32_t bins[kDigits];

  __device__ __forceinline__ void clear() {
    for (int d = threadIdx.x; d < kDigits; d += blockDim.x) bins[d] = 0;
  }
  // Counts a score if it has the digits found so far.
  __device__ __forceinline__ void add(const Digit& digit, uint32_t score) {
    if (digit.follows(score)) atomicAdd(&bins[digit.of(score)], 1u);
  }
  __device__ __forceinline__ void flush(Count* to) const {
    for (int d = threadIdx.x; d < kDigits; d += blockDim.x) {
      if (bins[d]) atomicAdd(&to[d], static_cast<Count>(bins[d]));
    }
  }
};

// The place from the top of a CTA's histogram at which `wanted` (from 1) are reached; takes those above off `wanted`.
// All threads of a CTA of kThreads call it; `histogram` may be shared or global memory.
template <class T>
__device__ __forceinline__ int reach_from_top(const T* histogram, int64_t* wanted) {
  constexpr int kEach = kDigits / kThreads;
  __shared__ Count sums[kThreads];
  __shared__ int digit;
  __shared__ int64_t rest;
  // Thread 0 has the highest digits.
  const int top = kDigits - 1 - static_cast<int>(threadIdx.x) * kEach;
  Count mine = 0;
  for (int d = 0; d < kEach; ++d) mine += histogram[top - d];
  sums[threadIdx.x] = mine;
  if (threadIdx.x == 0) digit = -1;
  __syncthreads();
  Count before = 0;
  for (int t = 0; t < static_cast<int>(threadIdx.x); ++t) before += sums[t];
  const Count goal = static_cast<Count>(*wanted);
  if (before < goal && before + mine >= goal) {
    int d = 0;
    while (before + histogram[top - d] < goal) before += histogram[top - d++];
    digit = top - d;
    rest = static_cast<int64_t>(goal - before);
  }
  __syncthreads();
  *wanted = rest;
  const int found = digit;
  __syncthreads();
  return found;
}

}  // namespace fuseo1
#endif  // FUSEO1_CUDA_HISTOGRAM_CUH_
