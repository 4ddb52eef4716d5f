// SPDX-License-Identifier: Apache-2.0
// One vector type for every instruction set, with the compilers' vector extensions.
//
// Included only by the per-ISA sources. Everything here has internal linkage: an inline function compiled for AVX-512
// must never be the copy that the linker keeps for the baseline.
#ifndef FUSEO1_CPU_KERNELS_SIMD_H_
#define FUSEO1_CPU_KERNELS_SIMD_H_

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "arithmetic.h"

namespace fuseo1 {
namespace {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

using Vf = float __attribute__((vector_size(kWidth * 4)));
using Vi = int32_t __attribute__((vector_size(kWidth * 4)));
using Vu = uint32_t __attribute__((vector_size(kWidth * 4)));
using Vh = uint16_t __attribute__((vector_size(kWidth * 2)));

#define FUSEO1_INLINE inline __attribute__((always_inline))

template <class V>
FUSEO1_INLINE V load(const void* p) {
  V v;
  memcpy(&v, p, sizeof v);
  return v;
}
template <class V>
FUSEO1_INLINE void store(void* p, V v) {
  memcpy(p, &v, sizeof v);
}

FUSEO1_INLINE Vu bits(Vf v) { return (Vu)v; }
FUSEO1_INLINE Vf from_bits(Vu v) { return (Vf)v; }
FUSEO1_INLINE Vf splat(float x) { return x - Vf{}; }
FUSEO1_INLINE Vu splat(uint32_t x) { return x - Vu{}; }
FUSEO1_INLINE Vu max(Vu a, Vu b) { return a > b ? a : b; }

// Comparisons; all are false where an operand is NaN. AVX-512 has mask registers for their results, which GCC 12's
// vector extensions do not use.
#if defined(__AVX512F__)
using Mask = __mmask16;
FUSEO1_INLINE Mask greater(Vf a, Vf b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ); }
FUSEO1_INLINE Mask greater_equal(Vf a, Vf b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GE_OQ); }
FUSEO1_INLINE Mask equal(Vf a, Vf b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_EQ_OQ); }
FUSEO1_INLINE Mask not_equal(Vf a, Vf b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_NEQ_OQ); }
FUSEO1_INLINE Mask greater(Vi a, Vi b) { return _mm512_cmpgt_epi32_mask((__m512i)a, (__m512i)b); }
FUSEO1_INLINE Mask equal(Vi a, Vi b) { return _mm512_cmpeq_epi32_mask((__m512i)a, (__m512i)b); }
FUSEO1_INLINE Mask less(Vu a, Vu b) { return _mm512_cmplt_epu32_mask((__m512i)a, (__m512i)b); }
FUSEO1_INLINE Mask is_nonfinite(Vf v) { return _mm512_fpclass_ps_mask((__m512)v, 0x99); }  // NaN, infinities
FUSEO1_INLINE Vf select(Mask m, Vf a, Vf b) { return (Vf)_mm512_mask_blend_ps(m, (__m512)b, (__m512)a); }
FUSEO1_INLINE Vu select(Mask m, Vu a, Vu b) { return (Vu)_mm512_mask_blend_epi32(m, (__m512i)b, (__m512i)a); }
FUSEO1_INLINE Mask any_bits(Vu v, uint32_t of) { return _mm512_test_epi32_mask((__m512i)v, (__m512i)splat(of)); }
FUSEO1_INLINE uint32_t lane_bits(Mask m) { return m; }
#else
using Mask = Vi;
FUSEO1_INLINE Mask greater(Vf a, Vf b) { return a > b; }
FUSEO1_INLINE Mask greater_equal(Vf a, Vf b) { return a >= b; }
FUSEO1_INLINE Mask equal(Vf a, Vf b) { return a == b; }
FUSEO1_INLINE Mask not_equal(Vf a, Vf b) { return (a < b) | (a > b); }
FUSEO1_INLINE Mask greater(Vi a, Vi b) { return a > b; }
FUSEO1_INLINE Mask equal(Vi a, Vi b) { return a == b; }
FUSEO1_INLINE Mask less(Vu a, Vu b) { return a < b; }
FUSEO1_INLINE Mask any_bits(Vu v, uint32_t of) { return (v & of) != Vu{}; }
FUSEO1_INLINE Mask is_nonfinite(Vf v) { return (Vi)((Vu)v & 0x7fffffffu) > (Vi)(kInfBits - 1 - Vu{}); }
FUSEO1_INLINE Vu select(Mask m, Vu a, Vu b) { return m ? a : b; }
FUSEO1_INLINE Vf select(Mask m, Vf a, Vf b) { return m ? a : b; }
// One bit per lane.
FUSEO1_INLINE uint32_t lane_bits(Mask m) {
#if defined(__AVX2__)
  return (uint32_t)_mm256_movemask_ps((__m256)m);
#elif defined(__x86_64__)
  return (uint32_t)_mm_movemask_ps((__m128)m);
#else
  uint32_t out = 0;
  for (int j = 0; j < kWidth; ++j) out |= (uint32_t)(m[j] & 1) << j;
  return out;
#endif
}
#endif
// v in the lanes of m, zero in the others.
FUSEO1_INLINE Vf keep(Mask m, Vf v) { return select(m, v, Vf{}); }
FUSEO1_INLINE Vu keep(Mask m, Vu v) { return select(m, v, Vu{}); }
FUSEO1_INLINE int count(Mask m) { return __builtin_popcount(lane_bits(m)); }

// sum + v in the lanes of m.
FUSEO1_INLINE Vu add(Mask m, Vu sum, Vu v) {
#if defined(__AVX512F__)
  return (Vu)_mm512_mask_add_epi32((__m512i)sum, m, (__m512i)sum, (__m512i)v);
#else
  return sum + keep(m, v);
#endif
}

constexpr uint32_t kAllLaneBits = (1u << kWidth) - 1;

FUSEO1_INLINE Vf abs(Vf v) { return from_bits(bits(v) & 0x7fffffffu); }

// a * b + c, of which it is not said whether the product is rounded.
FUSEO1_INLINE Vf fma(Vf a, Vf b, Vf c) {
#if defined(__AVX512F__)
  return (Vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (Vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

// The same in the lanes of m; in the others c, but for the sign of a zero.
FUSEO1_INLINE Vf add_product(Mask m, Vf a, Vf b, Vf c) {
#if defined(__AVX512F__)
  return (Vf)_mm512_mask3_fmadd_ps((__m512)a, (__m512)b, (__m512)c, m);
#else
  return fma(keep(m, a), b, c);
#endif
}

// table[index], by lane; an index is less than kWidth. Of the baseline nobody asks it (filtered.h: has_table).
FUSEO1_INLINE Vf look_up(Vf table, [[maybe_unused]] Vu index) {
#if defined(__AVX512F__)
  return (Vf)_mm512_permutexvar_ps((__m512i)index, (__m512)table);
#elif defined(__AVX2__)
  return (Vf)_mm256_permutevar8x32_ps((__m256)table, (__m256i)index);
#else
  return table;
#endif
}

// One bit per lane, for as many masks as have 64 lanes.
FUSEO1_INLINE uint64_t join(const Mask m[64 / kWidth]) {
#if defined(__AVX512F__)
  return _mm512_kunpackd(_mm512_kunpackw(m[3], m[2]), _mm512_kunpackw(m[1], m[0]));
#else
  uint64_t lanes = 0;
  for (int i = 0; i < 64 / kWidth; ++i) lanes |= uint64_t{lane_bits(m[i])} << (i * kWidth);
  return lanes;
#endif
}

// Stores the chosen lanes of v next to each other; writes at most a vector. Returns how many lanes these are.
FUSEO1_INLINE int pack(uint32_t lanes, Vu v, uint32_t* to) {
#if defined(__AVX512F__)
  store(to, (Vu)_mm512_maskz_compress_epi32(static_cast<Mask>(lanes), (__m512i)v));
  return __builtin_popcount(lanes);
#else
  if (lanes == 0) return 0;
  alignas(64) uint32_t lane[kWidth];
  store(lane, v);
  int n = 0;
  for (; lanes; lanes &= lanes - 1) to[n++] = lane[__builtin_ctz(lanes)];
  return n;
#endif
}

// As pack, and writes no more than the chosen lanes.
FUSEO1_INLINE int pack_exactly(uint32_t lanes, Vu v, uint32_t* to) {
#if defined(__AVX512F__)
  const int n = __builtin_popcount(lanes);
  const __m512i packed = _mm512_maskz_compress_epi32(static_cast<Mask>(lanes), (__m512i)v);
  _mm512_mask_storeu_epi32(to, static_cast<Mask>((1u << n) - 1), packed);
  return n;
#else
  return pack(lanes, v, to);
#endif
}

// The mask of a block's elements from j on, from the block's bits.
FUSEO1_INLINE Mask load_lane_bits(const uint8_t* bits, int j) {
  static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__);
#if defined(__AVX512F__)
  Mask lanes;
  memcpy(&lanes, bits + j / 8, sizeof lanes);
  return lanes;
#else
  alignas(64) static constexpr uint32_t kLane[] = {1, 2, 4, 8, 16, 32, 64, 128};
  const Vu lane = load<Vu>(kLane);
  const uint32_t told = kWidth == 4 ? bits[j / 8] >> j % 8 : bits[j / 8];
  return equal((Vi)(splat(told) & lane), (Vi)lane);
#endif
}

// Sum and maximum over the lanes.
#if defined(__AVX512F__)
FUSEO1_INLINE uint32_t max_lane(Vu v) { return _mm512_reduce_max_epu32((__m512i)v); }
// _mm512_reduce_add_epi32 ends in an addition of signed numbers, which must not overflow.
FUSEO1_INLINE uint32_t sum_lanes(Vu v) {
  using Vo = uint32_t __attribute__((vector_size(32)));
  using Vq = uint32_t __attribute__((vector_size(16)));
  const Vo o = (Vo)_mm512_castsi512_si256((__m512i)v) + (Vo)_mm512_extracti64x4_epi64((__m512i)v, 1);
  const Vq q = (Vq)_mm256_castsi256_si128((__m256i)o) + (Vq)_mm256_extracti128_si256((__m256i)o, 1);
  return (q[0] + q[1]) + (q[2] + q[3]);
}
#else
using Vq = uint32_t __attribute__((vector_size(16)));
#if defined(__AVX2__)
FUSEO1_INLINE Vq low_half(Vu v) { return (Vq)_mm256_castsi256_si128((__m256i)v); }
FUSEO1_INLINE Vq high_half(Vu v) { return (Vq)_mm256_extracti128_si256((__m256i)v, 1); }
#else
FUSEO1_INLINE Vq low_half(Vu v) { return v; }
FUSEO1_INLINE Vq high_half(Vu) { return Vq{}; }
#endif
FUSEO1_INLINE uint32_t max_lane(Vu v) {
  const Vq a = low_half(v), b = high_half(v), q = a > b ? a : b;
  const uint32_t x = q[0] > q[1] ? q[0] : q[1], y = q[2] > q[3] ? q[2] : q[3];
  return x > y ? x : y;
}
FUSEO1_INLINE uint32_t sum_lanes(Vu v) {
  const Vq q = low_half(v) + high_half(v);
  return (q[0] + q[1]) + (q[2] + q[3]);
}
#endif

// The first `n` lanes from memory that ends there, if it has no more; zeros in the others.
FUSEO1_INLINE Vu load_first(const uint32_t* p, int64_t n) {
  if (n >= kWidth) return load<Vu>(p);
#if defined(__AVX512F__)
  return (Vu)_mm512_maskz_loadu_epi32(static_cast<Mask>((1u << n) - 1), p);
#else
  alignas(64) uint32_t lane[kWidth] = {};
  for (int64_t j = 0; j < n; ++j) lane[j] = p[j];
  return load<Vu>(lane);
#endif
}

// From 16-bit to 32-bit lanes and back. GCC 12 splits __builtin_convertvector into halves here.
FUSEO1_INLINE Vu load_u16(const uint16_t* p) {
#if defined(__AVX512F__)
  return (Vu)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__AVX2__)
  return (Vu)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
#else
  return __builtin_convertvector(load<Vh>(p), Vu);
#endif
}
FUSEO1_INLINE void store_lanes(uint16_t* p, Vu v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16((__m512i)v));
#elif defined(__AVX2__)
  const __m256i pairs = _mm256_packus_epi32((__m256i)v, (__m256i)v);
  _mm_storeu_si128((__m128i*)p, _mm256_castsi256_si128(_mm256_permute4x64_epi64(pairs, 0x08)));
#else
  store(p, __builtin_convertvector(v, Vh));
#endif
}
FUSEO1_INLINE void store_lanes(uint32_t* p, Vu v) { store(p, v); }

// --- element types: exact widening to fp32; rounding to nearest even back, of anything but NaN ---

struct Bf16 {
  using Bits = uint16_t;
  static FUSEO1_INLINE Vf widen(const Bits* p) { return from_bits(load_u16(p) << 16); }
  static FUSEO1_INLINE Vu round(Vf v) {
    const Vu u = bits(v);
    return (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  }
  // The ends of an open interval, which may be halfway between two bf16: it matters not to which of them such an end
  // goes. The bf16 is the upper half.
  static FUSEO1_INLINE Vu round_near(Vf v) { return bits(v) + 0x8000u; }
  static FUSEO1_INLINE Mask differ(Vu a, Vu b) { return any_bits(a ^ b, 0xffff0000u); }
  static FUSEO1_INLINE Vu low_bits(Vu v) { return v >> 16; }
  static constexpr uint32_t kInf = 0x7f80u, kNan = 0x7fc0u, kAbs = 0x7fffu;
  static constexpr bool kNarrow = true;           // holds fewer bits than fp32
  static constexpr uint32_t kSafe = 0x7f7f0000u;  // fp32 bits: what is smaller does not round to infinity
};

struct Fp16 {
  using Bits = uint16_t;
  static FUSEO1_INLINE Vf widen(const Bits* p) {
    const Vu u = load_u16(p);
    const Vu magnitude = (u & 0x7fffu) << 13;
    // Reading fp16 bits as fp32 ones is off by 2^112, denormals included.
    const Vu scaled = bits(from_bits(magnitude) * splat(0x1p112f));
    const Vu special = keep(greater((Vi)magnitude, (Vi)splat((0x7c00u << 13) - 1)), splat(kInfBits));
    return from_bits(scaled | special | ((u & 0x8000u) << 16));
  }
  static FUSEO1_INLINE Vu round(Vf v) {
    const Vu u = bits(v) & 0x7fffffffu;
    const Vu sign = (bits(v) >> 16) & 0x8000u;
    // Below 2^-14, adding 0.5 lets the fp32 adder round to multiples of 2^-24, fp16's smallest.
    const Vu denormal = bits(from_bits(u) + splat(0.5f)) - 0x3f000000u;
    const Vu normal = (u - 0x38000000u + 0xfffu + ((u >> 13) & 1u)) >> 13;
    const auto above = [&](uint32_t limit) { return greater((Vi)u, (Vi)splat(limit)); };
    Vu r = select(above(0x387fffffu), normal, denormal);
    return select(above(0x477fefffu), splat(0x7c00u), r) | sign;
  }
  static FUSEO1_INLINE Vu round_near(Vf v) { return round(v); }
  static FUSEO1_INLINE Mask differ(Vu a, Vu b) { return any_bits(a ^ b, 0xffffu); }
  static FUSEO1_INLINE Vu low_bits(Vu v) { return v; }
  static constexpr uint32_t kInf = 0x7c00u, kNan = 0x7e00u, kAbs = 0x7fffu;
  static constexpr bool kNarrow = true;
  static constexpr uint32_t kSafe = 0x477fe000u;
};

struct Fp32 {
  using Bits = uint32_t;
  static FUSEO1_INLINE Vf widen(const Bits* p) { return load<Vf>(p); }
  static FUSEO1_INLINE Vu round(Vf v) { return bits(v); }
  static constexpr uint32_t kInf = kInfBits, kNan = 0x7fc00000u, kAbs = 0x7fffffffu;
  static constexpr bool kNarrow = false;
};

}  // namespace
}  // namespace fuseo1
#endif  // FUSEO1_CPU_KERNELS_SIMD_H_
