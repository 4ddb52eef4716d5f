// SPDX-License-Identifier: Apache-2.0
// A lane's eight elements: loaded 16 bytes at a time, widened to fp32, and rounded back.
//
// A warp works on a block of 256 elements, its lane l on the eight from 8 l on: one 16-byte load per input of 2-byte
// elements, two per input of fp32. All loads of a block are issued before the first is used.
#ifndef FUSEO1_CUDA_ELEMENT_CUH_
#define FUSEO1_CUDA_ELEMENT_CUH_

#include <cuda_runtime.h>
#include <stdint.h>
#include <string.h>

#include "arithmetic.h"
#include "fuseo1/types.h"

namespace fuseo1 {

constexpr int kWarp = 32;
constexpr int kLane = kBlock / kWarp;  // elements of a lane
constexpr unsigned kAllLanes = 0xffffffffu;

// Eight elements as in memory: sixteen bytes, or thirty-two.
struct Raw2 {
  uint4 words;
};
struct Raw4 {
  uint4 words[2];
};

__device__ __forceinline__ uint4 load16(const void* from) { return __ldcs(static_cast<const uint4*>(from)); }

FUSEO1_HOST_DEVICE bool aligned16(const void* p) { return (reinterpret_cast<uintptr_t>(p) & 15) == 0; }

// Loads `count` (at most eight) elements, and zeros for the rest: a tensor's tail, or an operand that is not aligned to
// 16 bytes. Out of line, and by value: a pointer to the result would keep it in local memory on the common path, too.
template <class Bits, class Raw>
__device__ __noinline__ Raw load_some(const void* from, int count) {
  Raw raw = {};
  uint32_t* const words = reinterpret_cast<uint32_t*>(&raw);
#pragma unroll
  for (int j = 0; j < kLane; ++j) {
    if (j >= count) continue;
    // Bytes: an operand may have any alignment.
    const unsigned char* bytes = static_cast<const unsigned char*>(from) + j * sizeof(Bits);
    uint32_t element = 0;
#pragma unroll
    for (int b = 0; b < static_cast<int>(sizeof(Bits)); ++b) element |= static_cast<uint32_t>(bytes[b]) << (8 * b);
    constexpr int kPerWord = 4 / sizeof(Bits);
    words[j / kPerWord] |= element << (8 * sizeof(Bits) * (j % kPerWord));
  }
  return raw;
}

__device__ __forceinline__ float widen_bf16(uint32_t bits) { return __uint_as_float(bits << 16); }

__device__ __forceinline__ float widen_fp16(uint32_t bits) {
#ifdef __CUDA_ARCH__
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(static_cast<uint16_t>(bits)));
  return wide;
#else
  const uint32_t magnitude = (bits & 0x7fffu) << 13;
  // Reading fp16 bits as fp32 ones is off by 2^112, denormals included.
  const uint32_t scaled = __float_as_uint(__fmul_rn(__uint_as_float(magnitude), 0x1p112f));
  const uint32_t special = magnitude >= (0x7c00u << 13) ? kInfBits : 0u;
  return __uint_as_float(scaled | special | (bits & 0x8000u) << 16);
#endif
}

__device__ __forceinline__ uint32_t word(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// All operands are bf16: the common case.
struct AllBf16 {
  using Raw = Raw2;
  // Eight elements from an aligned tensor's `at` on; `count` of them, from any; whichever it is. `at` is a multiple of
  // eight.
  static __device__ __forceinline__ Raw load_whole(const fuseo1_operand& op, int64_t at, int /*count*/) {
    return {load16(static_cast<const uint16_t*>(op.data) + at)};
  }
  static __device__ __forceinline__ Raw load_part(const fuseo1_operand& op, int64_t at, int count) {
    return load_some<uint16_t, Raw>(static_cast<const uint16_t*>(op.data) + at, count);
  }
  static __device__ __forceinline__ Raw load(const fuseo1_operand& op, int64_t at, int count) {
    return count >= kLane && aligned16(op.data) ? load_whole(op, at, count) : load_part(op, at, count);
  }
  static __device__ __forceinline__ float widen(const Raw& raw, int32_t /*dtype*/, int j) {
    const uint32_t pair = word(raw.words, j / 2);
    return j % 2 ? __uint_as_float(pair & 0xffff0000u) : widen_bf16(pair);
  }
};

// Each operand has any dtype.
struct Mixed {
  using Raw = Raw4;
  static __device__ __forceinline__ Raw load_whole(const fuseo1_operand& op, int64_t at, int /*count*/) {
    const bool wide = op.dtype == FUSEO1_FP32;
    const char* from = static_cast<const char*>(op.data) + at * (wide ? 4 : 2);
    Raw raw = {};
    raw.words[0] = load16(from);
    if (wide) raw.words[1] = load16(from + 16);
    return raw;
  }
  static __device__ __forceinline__ Raw load_part(const fuseo1_operand& op, int64_t at, int count) {
    if (op.dtype == FUSEO1_FP32) return load_some<uint32_t, Raw>(static_cast<const uint32_t*>(op.data) + at, count);
    return {{load_some<uint16_t, Raw2>(static_cast<const uint16_t*>(op.data) + at, count).words, {}}};
  }
  static __device__ __forceinline__ Raw load(const fuseo1_operand& op, int64_t at, int count) {
    return count >= kLane && aligned16(op.data) ? load_whole(op, at, count) : load_part(op, at, count);
  }
  static __device__ __forceinline__ float widen(const Raw& raw, int32_t dtype, int j) {
    if (dtype == FUSEO1_FP32) return __uint_as_float(word(raw.words[j / 4], j % 4));
    const uint32_t pair = word(raw.words[0], j / 2), bits = j % 2 ? pair >> 16 : pair & 0xffffu;
    return dtype == FUSEO1_BF16 ? widen_bf16(bits) : widen_fp16(bits);
  }
};

// One element, of any alignment.
__device__ __forceinline__ float load_one(const fuseo1_operand& op, int64_t at) {
  const bool wide = op.dtype == FUSEO1_FP32;
  const unsigned char* const bytes = static_cast<const unsigned char*>(op.data) + at * (wide ? 4 : 2);
  uint32_t bits = bytes[0] | static_cast<uint32_t>(bytes[1]) << 8;
  if (wide) bits |= static_cast<uint32_t>(bytes[2]) << 16 | static_cast<uint32_t>(bytes[3]) << 24;
  return wide ? __uint_as_float(bits) : op.dtype == FUSEO1_BF16 ? widen_bf16(bits) : widen_fp16(bits);
}

// The larger of x and |y|; NaN if either is.
__device__ __forceinline__ float max_or_nan(float x, float y) {
#ifdef __CUDA_ARCH__
  float most;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(most) : "f"(x), "f"(fabsf(y)));
  return most;
#else
  return isnan(x) || isnan(y) ? x + y : fmaxf(x, fabsf(y));
#endif
}

// --- rounding to nearest even, of anything but NaN, as bits of the narrower type ---

struct ToBf16 {
  using Bits = uint16_t;
  static __device__ __forceinline__ uint32_t round(float v) {
    const uint32_t u = __float_as_uint(v);
    return (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  }
  // Two numbers, the first in the lower half.
  static __device__ __forceinline__ uint32_t round_pair(float first, float second) {
#ifdef __CUDA_ARCH__
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
#else
    return (round(first) & 0xffffu) | round(second) << 16;
#endif
  }
  static constexpr uint32_t kInf = 0x7f80u, kNan = 0x7fc0u, kAbs = 0x7fffu;
  static constexpr bool kNarrow = true;        // holds fewer bits than fp32
  static constexpr float kSafe = 0x1.fep127f;  // what is smaller does not round to infinity
};

struct ToFp16 {
  using Bits = uint16_t;
  static __device__ __forceinline__ uint32_t round(float v) {
#ifdef __CUDA_ARCH__
    uint16_t narrow;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrow) : "f"(v));
    return narrow;
#else
    const uint32_t u = __float_as_uint(v) & 0x7fffffffu, sign = (__float_as_uint(v) >> 16) & 0x8000u;
    if (u > 0x477fefffu) return 0x7c00u | sign;
    // Below 2^-14, adding 0.5 lets the fp32 adder round to multiples of 2^-24, fp16's smallest.
    if (u <= 0x387fffffu) return (__float_as_uint(__fadd_rn(__uint_as_float(u), 0.5f)) - 0x3f000000u) | sign;
    return ((u - 0x38000000u + 0xfffu + ((u >> 13) & 1u)) >> 13) | sign;
#endif
  }
  static __device__ __forceinline__ uint32_t round_pair(float first, float second) {
#ifdef __CUDA_ARCH__
    uint32_t pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
#else
    return round(first) | round(second) << 16;
#endif
  }
  static constexpr uint32_t kInf = 0x7c00u, kNan = 0x7e00u, kAbs = 0x7fffu;
  static constexpr bool kNarrow = true;
  static constexpr float kSafe = 0x1.ffcp15f;
};

struct ToFp32 {
  using Bits = uint32_t;
  static __device__ __forceinline__ uint32_t round(float v) { return __float_as_uint(v); }
  static constexpr uint32_t kInf = kInfBits, kNan = 0x7fc00000u, kAbs = 0x7fffffffu;
  static constexpr bool kNarrow = false;
};

}  // namespace fuseo1
#endif  // FUSEO1_CUDA_ELEMENT_CUH_
