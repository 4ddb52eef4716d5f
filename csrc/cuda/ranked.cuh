// SPDX-License-Identifier: Apache-2.0
// Turns RANKED selections (include/fuseo1/select.h) into bits: a CTA sorts a row by magnitude, and compares every
// element's random word with the limit of its rank.
#ifndef FUSEO1_CUDA_RANKED_CUH_
#define FUSEO1_CUDA_RANKED_CUH_

#include "select.cuh"
#include "state.cuh"

namespace fuseo1 {

// RANKED of one target, in the chunk whose first element has flat index `offset`.
struct RankRule {
  int32_t operand;
  uint64_t key;
  int64_t row, offset;
  double low, span;
};

// Rows are sorted by keys of 31 bits, digit by digit from the lowest.
constexpr int kRadixBits = 8, kRadix = 1 << kRadixBits, kRadixDigits = 4;

// The number of words with each digit in each warp's stretch of the row; later the place of the next such word.
using RadixPlaces = uint32_t[kRadix][kWarps];

// Turns counts into places: ordered by digit, then by warp.
__device__ __forceinline__ void add_up(RadixPlaces& places) {
  constexpr int kEach = kRadix * kWarps / kThreads;
  __shared__ uint32_t sums[kThreads];
  uint32_t* const mine = &places[0][0] + threadIdx.x * kEach;
  uint32_t sum = 0;
  for (int k = 0; k < kEach; ++k) sum += mine[k];
  sums[threadIdx.x] = sum;
  __syncthreads();
  uint32_t place = 0;
  for (int t = 0; t < static_cast<int>(threadIdx.x); ++t) place += sums[t];
  for (int k = 0; k < kEach; ++k) {
    const uint32_t count = mine[k];
    mine[k] = place;
    place += count;
  }
  __syncthreads();
}

// Copies n words to `to`, ordered by the digit at `shift`; equals stay in order. All threads of a CTA call it, which
// may have just written the words.
__device__ __forceinline__ void sort_by_digit(const uint64_t* from, uint64_t* to, int64_t n, int shift,
                                              RadixPlaces& places) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t stretch = (n + kThreads - 1) / kThreads * kWarp, begin = warp * stretch, end = min(begin + stretch, n);
  const auto digit_of = [&](uint64_t word) { return static_cast<uint32_t>(word >> shift) & (kRadix - 1); };
  for (int k = threadIdx.x; k < kRadix * kWarps; k += kThreads) (&places[0][0])[k] = 0;
  __syncthreads();
  for (int64_t i = begin + lane; i < end; i += kWarp) atomicAdd(&places[digit_of(from[i])][warp], 1u);
  __syncthreads();
  add_up(places);
  for (int64_t at = begin; at < end; at += kWarp) {
    const bool exists = at + lane < end;
    const uint64_t word = exists ? from[at + lane] : 0;
    const uint32_t digit = exists ? digit_of(word) : kRadix;
    const uint32_t alike = __match_any_sync(kAllLanes, digit), before = __popc(alike & ((1u << lane) - 1));
    if (exists) to[places[digit][warp] + before] = word;
    __syncwarp();
    if (exists && before == 0) places[digit][warp] += __popc(alike);
    __syncwarp();
  }
  __syncthreads();
}

// word(key, f) of select.h.
__device__ __forceinline__ uint32_t random_word(uint64_t key, int64_t f) {
  uint32_t words[4];
  philox(static_cast<uint64_t>(f) / kBlock * (kBlock / 4) + static_cast<uint64_t>(f) % (kBlock / 4), key, words);
  return word({words[0], words[1], words[2], words[3]}, static_cast<int>(f % kBlock) / (kBlock / 4));
}

// limit(r) of select.h.
__device__ __forceinline__ uint32_t limit_of(const RankRule& rule, int64_t rank) {
  const double last = static_cast<double>(rule.row - 1);
  const double share = rule.row > 1 ? __ddiv_rn(static_cast<double>(rank), last) : 0.5;
  return static_cast<uint32_t>(0x1p32 * __dadd_rn(rule.low, __dmul_rn(share, rule.span)));
}

// `rooms`: two rows of words for every CTA. `bits`: a bit, 0 before, for each of the chunk's elements, which are whole
// rows.
static __global__ void __launch_bounds__(kThreads, 1)
    rank_rows(const __grid_constant__ Inputs in, RankRule rule, uint64_t* rooms, uint32_t* bits) {
  __shared__ RadixPlaces places;
  const int64_t n = rule.row;
  uint64_t *words = rooms + 2 * n * blockIdx.x, *spare = words + n;
  for (int64_t start = n * blockIdx.x; start < in.numel; start += n * gridDim.x) {
    // Smaller words rank higher: the upper half is how far |d| lies below infinity, the lower half the element's
    // number.
    for (int64_t i = threadIdx.x; i < n; i += kThreads) {
      const float base = load_one(in.operands[0], start + i), x = load_one(in.operands[rule.operand], start + i);
      const uint32_t magnitude = min(magnitude_bits(__fsub_rn(x, base)), kInfBits);
      words[i] = static_cast<uint64_t>(kInfBits - magnitude) << 32 | static_cast<uint64_t>(i);
    }
    __syncthreads();
    for (int digit = 0; digit < kRadixDigits; ++digit) {
      sort_by_digit(words, spare, n, 32 + digit * kRadixBits, places);
      uint64_t* const sorted = spare;
      spare = words, words = sorted;
    }
    auto* const limits = reinterpret_cast<uint32_t*>(spare);  // by element
    for (int64_t i = threadIdx.x; i < n; i += kThreads) {
      limits[static_cast<uint32_t>(words[i])] = limit_of(rule, n - 1 - i);
    }
    __syncthreads();
    // Words of 32 bits may hold parts of two rows.
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    for (int64_t f = start / kWarp * kWarp + threadIdx.x; f - lane < start + n; f += kThreads) {
      const bool inside = f >= start && f < start + n;
      const bool selected = inside && random_word(rule.key, rule.offset + f) < limits[f - start];
      const uint32_t all = __ballot_sync(kAllLanes, selected);
      if (lane == 0 && all) atomicOr(&bits[f / kWarp], all);
    }
    __syncthreads();
  }
}

}  // namespace fuseo1
#endif  // FUSEO1_CUDA_RANKED_CUH_
