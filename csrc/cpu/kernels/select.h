// SPDX-License-Identifier: Apache-2.0
// Applies selections: a block's elements that take no part become 0 (include/fuseo1/select.h).
// Included only by the per-ISA sources; internal linkage throughout (see simd.h).
#ifndef FUSEO1_CPU_KERNELS_SELECT_H_
#define FUSEO1_CPU_KERNELS_SELECT_H_

#include "fuseo1/select.h"
#include "row_factors.h"
#include "simd.h"
#include "table.h"

namespace fuseo1 {
namespace {

// --- Philox4x32-7, one counter per 64-bit lane: products need no shuffling, and only the low halves count ---

using Vl = uint64_t __attribute__((vector_size(kWidth * 4)));

constexpr int kPhiloxRounds = 7;
constexpr uint32_t kPhiloxMultiplier[2] = {0xd2511f53u, 0xcd9e8d57u};
constexpr uint32_t kPhiloxWeyl[2] = {0x9e3779b9u, 0xbb67ae85u};
constexpr int kCounters = kBlock / 4;  // of a block

FUSEO1_INLINE Vl splat(uint64_t x) { return x - Vl{}; }

// The full 64-bit products of the lanes' low halves and `by`.
FUSEO1_INLINE Vl multiply(Vl v, uint32_t by) {
  const Vl factor = splat(uint64_t{by});
#if defined(__AVX512F__)
  return (Vl)_mm512_mul_epu32((__m512i)v, (__m512i)factor);
#elif defined(__AVX2__)
  return (Vl)_mm256_mul_epu32((__m256i)v, (__m256i)factor);
#elif defined(__x86_64__)
  return (Vl)_mm_mul_epu32((__m128i)v, (__m128i)factor);
#else
  return (v & 0xffffffffu) * factor;
#endif
}

// The low halves of a's and b's lanes, alternating.
FUSEO1_INLINE Vu interleave(Vl a, Vl b) {
#if defined(__AVX512F__)
  return (Vu)_mm512_mask_shuffle_epi32((__m512i)a, 0xaaaa, (__m512i)b, _MM_PERM_CCAA);
#else
  return (Vu)((a & 0xffffffffu) | (b << 32));
#endif
}

// Seven rounds of the counters (low halves of lo[], hi, 0, 0), two vectors at once. Their words go to `words`, whose
// lanes alternate between lo[0] and lo[1]. Half of the first two rounds is the same in all lanes.
FUSEO1_INLINE void philox(const Vl lo[2], uint32_t hi, uint64_t key, Vu words[4]) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  const uint64_t same = uint64_t{hi ^ k0} * kPhiloxMultiplier[0];
  Vl x[2][4];
  for (int v = 0; v < 2; ++v) {
    const Vl p = multiply(lo[v], kPhiloxMultiplier[0]);
    const Vl q = multiply((p >> 32) ^ splat(uint64_t{k1}), kPhiloxMultiplier[1]);
    x[v][0] = (q >> 32) ^ splat(uint64_t{k0 + kPhiloxWeyl[0]});
    x[v][1] = q;
    x[v][2] = p ^ splat((same >> 32) ^ (k1 + kPhiloxWeyl[1]));
    x[v][3] = splat(same);
  }
#pragma GCC unroll 5
  for (int round = 2; round < kPhiloxRounds; ++round) {
    const uint64_t by0 = k0 + round * kPhiloxWeyl[0], by1 = k1 + round * kPhiloxWeyl[1];
    for (int v = 0; v < 2; ++v) {
      const Vl p = multiply(x[v][0], kPhiloxMultiplier[0]), q = multiply(x[v][2], kPhiloxMultiplier[1]);
      x[v][0] = (q >> 32) ^ x[v][1] ^ splat(by0);
      x[v][1] = q;
      x[v][2] = (p >> 32) ^ x[v][3] ^ splat(by1);
      x[v][3] = p;
    }
  }
  for (int j = 0; j < 4; ++j) words[j] = interleave(x[0][j], x[1][j]);
}

// --- the selections ---

constexpr int32_t kLanes[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

FUSEO1_INLINE Vu magnitude(Vf d) { return bits(d) & 0x7fffffffu; }

// d where it is selected or not finite, else 0.
FUSEO1_INLINE void keep_selected(float* d, Mask selected) {
  const Vf x = load<Vf>(d);
  store(d, keep(selected | is_nonfinite(x), x));
}

// A cut within one block: it has values above `threshold`, and among the first `ties` elements those equal to it.
// Values are the bits of non-negative fp32.
struct BlockCut {
  uint32_t threshold;
  int32_t ties;

  BlockCut(const fuseo1_cut& cut, int64_t flat) : threshold(cut.threshold), ties(0) {
    if (cut.tie_limit >= flat) {
      ties = static_cast<int32_t>(cut.tie_limit - flat < kBlock ? cut.tie_limit - flat + 1 : kBlock);
    }
  }

  // Whether ties are cut in this block.
  bool splits() const { return ties % kBlock != 0; }

  // At the block's elements j .. j + kWidth - 1, values above this are in the cut. kSplits false: no ties are cut here.
  template <bool kSplits = true>
  FUSEO1_INLINE Vi limit(int j) const {
    if (!kSplits) return (Vi)splat(threshold - (ties ? 1 : 0));
    const Mask early = greater((Vi)splat(static_cast<uint32_t>(ties - j)), load<Vi>(kLanes));
    return (Vi)(splat(threshold) - keep(early, splat(uint32_t{1})));
  }
};

// The cut, lowered if necessary so that it has everything that is not finite.
FUSEO1_INLINE fuseo1_cut below_infinity(const fuseo1_cut& cut) {
  return cut.threshold < kInfBits ? cut : fuseo1_cut{kInfBits - 1, -1};
}

// `kept` includes everything that is not finite.
template <bool kSplits, bool kDrops>
void keep_band(const BlockCut& kept, const BlockCut& dropped, float* d) {
  for (int j = 0; j < kBlock; j += kWidth) {
    const Vf x = load<Vf>(d + j);
    const Vi m = (Vi)magnitude(x);
    Mask selected = greater(m, kept.limit<kSplits>(j));
    if (kDrops) selected &= greater(dropped.limit<kSplits>(j) + 1, m) | greater(m, (Vi)splat(kInfBits - 1));
    store(d + j, keep(selected, x));
  }
}

inline void apply_band(const fuseo1_select& select, int64_t flat, float* d) {
  const BlockCut kept(below_infinity(select.keep), flat), dropped(select.drop, flat);
  const bool splits = kept.splits() || dropped.splits();
  if (select.drop.threshold < kInfBits) {
    splits ? keep_band<true, true>(kept, dropped, d) : keep_band<false, true>(kept, dropped, d);
  } else {
    splits ? keep_band<true, false>(kept, dropped, d) : keep_band<false, false>(kept, dropped, d);
  }
}

// The same for |d| times its row's factor.
inline void apply_scored_band(const fuseo1_select& select, int64_t flat, int64_t count, float* d) {
  alignas(64) float scores[kBlock];
  score_rows(select.rows, flat, count, d, scores);
  const BlockCut kept(select.keep, flat), dropped(select.drop, flat);
  const bool drops = select.drop.threshold < kInfBits;
  for (int j = 0; j < kBlock; j += kWidth) {
    const Vi score = (Vi)load<Vu>(scores + j);
    Mask selected = greater(score, kept.limit(j));
    if (drops) selected &= greater(dropped.limit(j) + 1, score);
    keep_selected(d + j, selected);
  }
}

// Calls use(j, words) with the random words of elements j .. j + kWidth - 1 of the block at flat index `flat`.
template <class Use>
FUSEO1_INLINE void for_each_words(uint64_t key, int64_t flat, const Use& use) {
  const uint64_t first = static_cast<uint64_t>(flat / 4);
  const Vl even = (Vl)load<Vu>(kLanes) & 0xffffffffu, odd = (Vl)load<Vu>(kLanes) >> 32;
  for (int c = 0; c < kCounters; c += kWidth) {
    const Vl begin = splat(uint64_t{static_cast<uint32_t>(first) + c});
    const Vl lo[2] = {begin + even, begin + odd};
    Vu words[4];
    philox(lo, static_cast<uint32_t>(first >> 32), key, words);
    for (int j = 0; j < 4; ++j) use(j * kCounters + c, words[j]);
  }
}

// Calls use(j, mask of the elements from j on that are drawn).
template <class Use>
FUSEO1_INLINE void for_each_drawn(const fuseo1_select& select, int64_t flat, const Use& use) {
  const Vu limit = splat(select.limit);
  for_each_words(select.key, flat, [&](int j, Vu words) { use(j, less(words, limit)); });
}

inline void apply_draw(const fuseo1_select& select, int64_t flat, float* d) {
  for_each_drawn(select, flat, [&](int j, Mask drawn) { keep_selected(d + j, drawn); });
}

// Reads only vectors of bits that hold some of the chunk's elements.
inline void apply_bits(const fuseo1_select& select, int64_t at, int64_t count, float* d) {
  const uint8_t* told = reinterpret_cast<const uint8_t*>(select.bits) + at / 8;
  for (int j = 0; j < count; j += kWidth) keep_selected(d + j, load_lane_bits(told, j));
}

inline void apply_clamp(const fuseo1_select& select, float* d) {
  const Vu most = bits(splat(select.most));
  for (int j = 0; j < kBlock; j += kWidth) {
    const Vf x = load<Vf>(d + j);
    const Vf clamped =
        fuseo1::select(greater((Vi)magnitude(x), (Vi)most), from_bits(most | (bits(x) & 0x80000000u)), x);
    store(d + j, fuseo1::select(greater((Vi)magnitude(x), (Vi)splat(kInfBits - 1)), x, clamped));
  }
}

// Applies `select` to a block's task vector d[kBlock]: from flat index `flat` on, elements at .. at + count - 1 of the
// chunk. What is not finite stays. RANKED has become BITS before (ranked_selects.h).
inline void apply_select(const fuseo1_select& select, int64_t flat, int64_t at, int64_t count, float* d) {
  switch (select.kind) {
    case FUSEO1_SELECT_BAND:
      return select.rows.factors ? apply_scored_band(select, flat, count, d) : apply_band(select, flat, d);
    case FUSEO1_SELECT_DRAW:
      return apply_draw(select, flat, d);
    case FUSEO1_SELECT_BITS:
      return apply_bits(select, at, count, d);
    case FUSEO1_SELECT_CLAMP:
      return apply_clamp(select, d);
  }
}

}  // namespace
}  // namespace fuseo1
#endif  // FUSEO1_CPU_KERNELS_SELECT_H_
