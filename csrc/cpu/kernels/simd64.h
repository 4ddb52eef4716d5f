// SPDX-License-Identifier: Apache-2.0
// simd.h's vectors for fp64: half as many lanes.
// Included only by the per-ISA sources; internal linkage throughout (see simd.h).
#ifndef FUSEO1_CPU_KERNELS_SIMD64_H_
#define FUSEO1_CPU_KERNELS_SIMD64_H_

#include "simd.h"

namespace fuseo1 {
namespace {

constexpr int kWidth64 = kWidth / 2;

using Vd = double __attribute__((vector_size(kWidth64 * 8)));
using Vdu = uint64_t __attribute__((vector_size(kWidth64 * 8)));
using Vdi = int64_t __attribute__((vector_size(kWidth64 * 8)));
using Vfh = float __attribute__((vector_size(kWidth64 * 4)));

FUSEO1_INLINE Vdu bits(Vd v) { return (Vdu)v; }
FUSEO1_INLINE Vd from_bits(Vdu v) { return (Vd)v; }
FUSEO1_INLINE Vd splat(double x) { return x - Vd{}; }

// Exactly.
FUSEO1_INLINE Vd widen(Vfh v) {
#if defined(__AVX512F__)
  return (Vd)_mm512_cvtps_pd((__m256)v);
#elif defined(__AVX2__)
  return (Vd)_mm256_cvtps_pd((__m128)v);
#else
  return __builtin_convertvector(v, Vd);
#endif
}
FUSEO1_INLINE Vd load_wide(const float* p) { return widen(load<Vfh>(p)); }
// sum + a * b of numbers whose product is exact: an FMA then rounds as the two operations do.
FUSEO1_INLINE Vd add_exact_product(Vd a, Vd b, Vd sum) {
#if defined(__AVX512F__)
  return (Vd)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)sum);
#elif defined(__FMA__)
  return (Vd)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)sum);
#else
  return sum + a * b;
#endif
}
// The lower and the upper half of a vector.
FUSEO1_INLINE Vd widen_lower(Vf v) {
#if defined(__AVX512F__)
  return (Vd)_mm512_cvtps_pd(_mm512_castps512_ps256((__m512)v));
#elif defined(__AVX2__)
  return (Vd)_mm256_cvtps_pd(_mm256_castps256_ps128((__m256)v));
#elif defined(__x86_64__)
  return (Vd)_mm_cvtps_pd((__m128)v);
#else
  return Vd{v[0], v[1]};
#endif
}
FUSEO1_INLINE Vd widen_upper(Vf v) {
#if defined(__AVX512F__)
  return (Vd)_mm512_cvtps_pd(_mm512_extractf32x8_ps((__m512)v, 1));
#elif defined(__AVX2__)
  return (Vd)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)v, 1));
#elif defined(__x86_64__)
  return (Vd)_mm_cvtps_pd(_mm_movehl_ps((__m128)v, (__m128)v));
#else
  return Vd{v[2], v[3]};
#endif
}

// To nearest even.
FUSEO1_INLINE Vfh narrow(Vd v) {
#if defined(__AVX512F__)
  return (Vfh)_mm512_cvtpd_ps((__m512d)v);
#elif defined(__AVX2__)
  return (Vfh)_mm256_cvtpd_ps((__m256d)v);
#else
  return __builtin_convertvector(v, Vfh);
#endif
}

// Comparisons; all are false where an operand is NaN.
#if defined(__AVX512F__)
using Mask64 = __mmask8;
FUSEO1_INLINE Mask64 greater(Vd a, Vd b) { return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_GT_OQ); }
FUSEO1_INLINE Mask64 greater_equal(Vd a, Vd b) { return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_GE_OQ); }
FUSEO1_INLINE Mask64 equal(Vd a, Vd b) { return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_EQ_OQ); }
FUSEO1_INLINE Vd select(Mask64 m, Vd a, Vd b) { return (Vd)_mm512_mask_blend_pd(m, (__m512d)b, (__m512d)a); }
FUSEO1_INLINE Mask64 inverse(Mask64 m) { return static_cast<Mask64>(~m); }
#else
using Mask64 = Vdi;
#if defined(__AVX2__)
FUSEO1_INLINE Mask64 greater(Vd a, Vd b) { return (Mask64)_mm256_cmp_pd((__m256d)a, (__m256d)b, _CMP_GT_OQ); }
FUSEO1_INLINE Mask64 greater_equal(Vd a, Vd b) { return (Mask64)_mm256_cmp_pd((__m256d)a, (__m256d)b, _CMP_GE_OQ); }
FUSEO1_INLINE Mask64 equal(Vd a, Vd b) { return (Mask64)_mm256_cmp_pd((__m256d)a, (__m256d)b, _CMP_EQ_OQ); }
#elif defined(__x86_64__)
// GCC 12 crashes on a > b when it turns masks of 64-bit lanes, which SSE2 cannot compare, into conditions.
FUSEO1_INLINE Mask64 greater(Vd a, Vd b) { return (Mask64)_mm_cmpgt_pd((__m128d)a, (__m128d)b); }
FUSEO1_INLINE Mask64 greater_equal(Vd a, Vd b) { return (Mask64)_mm_cmpge_pd((__m128d)a, (__m128d)b); }
FUSEO1_INLINE Mask64 equal(Vd a, Vd b) { return (Mask64)_mm_cmpeq_pd((__m128d)a, (__m128d)b); }
#else
FUSEO1_INLINE Mask64 greater(Vd a, Vd b) { return a > b; }
FUSEO1_INLINE Mask64 greater_equal(Vd a, Vd b) { return a >= b; }
FUSEO1_INLINE Mask64 equal(Vd a, Vd b) { return a == b; }
#endif
FUSEO1_INLINE Vd select(Mask64 m, Vd a, Vd b) { return (Vd)(((Vdi)a & m) | ((Vdi)b & ~m)); }
FUSEO1_INLINE Mask64 inverse(Mask64 m) { return ~m; }
#endif

// The lower (0) or the upper (1) half of an fp32 vector's mask.
#if defined(__AVX512F__)
FUSEO1_INLINE Mask64 half(Mask m, int upper) { return static_cast<Mask64>(m >> (upper * kWidth64)); }
#elif defined(__AVX2__)
FUSEO1_INLINE Mask64 half(Mask m, int upper) {
  return (Mask64)_mm256_cvtepi32_epi64(upper ? _mm256_extracti128_si256((__m256i)m, 1)
                                             : _mm256_castsi256_si128((__m256i)m));
}
#elif defined(__x86_64__)
FUSEO1_INLINE Mask64 half(Mask m, int upper) {
  return (Mask64)(upper ? _mm_unpackhi_epi32((__m128i)m, (__m128i)m) : _mm_unpacklo_epi32((__m128i)m, (__m128i)m));
}
#else
FUSEO1_INLINE Mask64 half(Mask m, int upper) {
  Mask64 lanes;
  for (int j = 0; j < kWidth64; ++j) lanes[j] = m[upper * kWidth64 + j];
  return lanes;
}
#endif

FUSEO1_INLINE Mask64 is_finite(Vd v) {
#if defined(__AVX512DQ__)
  return inverse(_mm512_fpclass_pd_mask((__m512d)v, 0x99));  // NaN, infinities
#else
  return equal(v - v, Vd{});
#endif
}

// sum + v in the lanes of m.
FUSEO1_INLINE Vd add(Mask64 m, Vd sum, Vd v) {
#if defined(__AVX512F__)
  return (Vd)_mm512_mask_add_pd((__m512d)sum, m, (__m512d)sum, (__m512d)v);
#else
  return select(m, sum + v, sum);
#endif
}

// Rounded to odd: if fp32 cannot hold v, it is truncated towards zero and its last bit set. Rounding that to nearest
// even, to fewer bits, equals rounding v.
FUSEO1_INLINE Vfh narrow_to_odd(Vd v) {
#if defined(__AVX512F__)
  const __m256 cut = _mm512_cvt_roundpd_ps((__m512d)v, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
  const Mask64 inexact = _mm512_cmp_pd_mask(_mm512_cvtps_pd(cut), (__m512d)v, _CMP_NEQ_OQ);
  return (Vfh)_mm256_mask_or_epi32((__m256i)cut, inexact, (__m256i)cut, _mm256_set1_epi32(1));
#else
  using Vih = int32_t __attribute__((vector_size(kWidth64 * 4)));
  const Vfh nearest = narrow(v);
  const Vd wide = widen(nearest);
  // -1 in the lanes where `nearest` is farther from zero than v, and where it differs from v.
  Vih beyond, inexact;
  for (int j = 0; j < kWidth64; ++j) {
    beyond[j] = -(__builtin_fabs(wide[j]) > __builtin_fabs(v[j]));
    inexact[j] = wide[j] < v[j] || wide[j] > v[j];
  }
  return (Vfh)(((Vih)nearest + beyond) | inexact);
#endif
}

}  // namespace
}  // namespace fuseo1
#endif  // FUSEO1_CPU_KERNELS_SIMD64_H_
