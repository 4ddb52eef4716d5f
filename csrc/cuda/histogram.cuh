// SPDX-License-Identifier: Apache-2.0
// Histograms of the digits of scores: the search finds a score digit by digit, from the top.
#ifndef FUSEO1_CUDA_HISTOGRAM_CUH_
#define FUSEO1_CUDA_HISTOGRAM_CUH_

#include "block.cuh"

namespace fuseo1 {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;
// Scores have 31 bits. Their digits, from the top, have 11, 11 and 9 bits. A place that follows in the same word has
// digits of 11 bits.
constexpr int kDigitBits = 11;
constexpr int kDigits = 1 << kDigitBits;
constexpr int kScoreBits = 31, kScoreDigits = 3;
constexpr int kOffsetDigits = 3;  // of a difference of scores; like those of a place
FUSEO1_HOST_DEVICE constexpr int digit_shift(int digit) {
  return digit == 0 ? 20 : digit == 1 ? 9 : -kDigitBits * (digit + 1 - kScoreDigits);
}

using Count = unsigned long long;

// A count in shared memory, where adding 32 bits takes one instruction and 64 a loop.
struct Halves {
  uint32_t low, high;

  __device__ __forceinline__ void add(Count count) {
    const auto few = static_cast<uint32_t>(count);
    const uint32_t before = atomicAdd(&low, few);
    const uint32_t more = static_cast<uint32_t>(count >> 32) + (before + few < before);
    if (more) atomicAdd(&high, more);
  }
};
__device__ __forceinline__ Count count_of(Count count) { return count; }
__device__ __forceinline__ Count count_of(const Halves& count) { return Count{count.high} << 32 | count.low; }

// The digit to find next, and those found above it: of scores (uint32_t), or of words (uint64_t) with a place of
// `place_bits` below the score.
template <class Word>
struct Digit {
  int shift, bits;  // its lowest bit, how many it has
  Word found;

  __device__ __forceinline__ Digit(int index, Word found, int place_bits = 0)
      : shift(place_bits + digit_shift(index)),
        bits((index ? digit_shift(index - 1) : kScoreBits) - digit_shift(index)),
        found(found) {}
  // In two steps: a word has no bit above its first digit.
  __device__ __forceinline__ bool follows(Word word) const { return word >> shift >> bits == found; }
  __device__ __forceinline__ uint32_t of(Word word) const {
    return static_cast<uint32_t>(word >> shift) & ((1u << bits) - 1);
  }
  // The digits found, with this one.
  __device__ __forceinline__ Word append(int reached) const { return found << bits | static_cast<Word>(reached); }
};

// A CTA's histogram of one digit.
struct Histogram {
  uint32_t bins[kDigits];

  __device__ __forceinline__ void clear() {
    for (int d = threadIdx.x; d < kDigits; d += blockDim.x) bins[d] = 0;
  }
  // Counts a word if it has the digits found so far.
  template <class Word>
  __device__ __forceinline__ void add(const Digit<Word>& digit, Word word) {
    if (digit.follows(word)) atomicAdd(&bins[digit.of(word)], 1u);
  }
  __device__ __forceinline__ void flush(Count* to) const {
    for (int d = threadIdx.x; d < kDigits; d += blockDim.x) {
      if (bins[d]) atomicAdd(&to[d], static_cast<Count>(bins[d]));
    }
  }
};

// The digit at which `wanted` (from 1) are reached from the top of a histogram; subtracts those above from `wanted`.
// All threads of a CTA of kThreads call it; `histogram` may be in shared or global memory.
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
