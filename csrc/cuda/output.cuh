// SPDX-License-Identifier: Apache-2.0
// The memory of a merged tensor: rounding to its dtype, and stores of 16 bytes.
#ifndef FUSEO1_CUDA_OUTPUT_CUH_
#define FUSEO1_CUDA_OUTPUT_CUH_

#include "element.cuh"

namespace fuseo1 {

struct Output {
  void* data;
  int32_t dtype;
  int32_t aligned;  // to 16 bytes
};

// Fills *to for `count` elements from flat index `offset` on; false if the arguments are outside the contract.
inline bool make_output(void* out, int32_t dtype, int64_t offset, int64_t count, Output* to) {
  *to = {out, dtype, aligned16(out)};
  return offset >= 0 && offset % kBlock == 0 && dtype >= FUSEO1_BF16 && dtype <= FUSEO1_FP32 && (out || !count);
}

// fp64, rounded once: to fp32, or to fewer bits through an fp32 rounded to odd (truncated towards zero, with the last
// bit set if that lost anything), from which rounding to nearest even equals rounding the number itself.
template <class Out>
__device__ __forceinline__ uint32_t result_of(double x) {
  if (isnan(x)) return Out::kNan;
  if (!Out::kNarrow) return Out::round(__double2float_rn(x));
  const float towards_zero = __double2float_rz(x);
  const bool exact = static_cast<double>(towards_zero) == x;
  return Out::round(__uint_as_float(__float_as_uint(towards_zero) | (exact ? 0u : 1u)));
}

__device__ __forceinline__ void store16(void* to, const uint4& words) { __stcs(static_cast<uint4*>(to), words); }

// A lane's elements as they lie in memory.
template <class Out>
struct Results {
  static constexpr int kPerWord = 4 / sizeof(typename Out::Bits), kWords = kLane / kPerWord;
  uint32_t words[kWords];

  __device__ __forceinline__ void set(int j, uint32_t bits) {
    uint32_t& word = words[j / kPerWord];
    word = kPerWord == 1 ? bits : j % 2 ? (word & 0xffffu) | bits << 16 : (word & 0xffff0000u) | bits;
  }

  // Writes those of which `count` exist, from element `at` on, a multiple of eight.
  __device__ __forceinline__ void store(int64_t at, int count, const Output& out) const {
    constexpr int kBytes = sizeof(typename Out::Bits);
    char* to = static_cast<char*>(out.data) + at * static_cast<int64_t>(kBytes);
    if (count == kLane && out.aligned) {
#pragma unroll
      for (int i = 0; i < kWords; i += 4) store16(to + 4 * i, {words[i], words[i + 1], words[i + 2], words[i + 3]});
      return;
    }
#pragma unroll
    for (int j = 0; j < kLane * kBytes; ++j) {
      if (j < count * kBytes) to[j] = static_cast<char>(words[j / 4] >> (8 * (j % 4)));
    }
  }
};

}  // namespace fuseo1
#endif  // FUSEO1_CUDA_OUTPUT_CUH_
