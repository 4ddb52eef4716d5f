// SPDX-License-Identifier: Apache-2.0
// select: the elements of a target that take part (include/fuseo1/select.h), as a bit for each of a lane's eight.
#ifndef FUSEO1_CUDA_SELECT_CUH_
#define FUSEO1_CUDA_SELECT_CUH_

#include "block.cuh"

namespace fuseo1 {

// The words of Philox4x32-7 for the counter (low word, high word, 0, 0).
__device__ __forceinline__ void philox(uint64_t counter, uint64_t key, uint32_t* words) {
  constexpr int kRounds = 7;
  uint32_t x0 = static_cast<uint32_t>(counter), x1 = static_cast<uint32_t>(counter >> 32), x2 = 0, x3 = 0;
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t p = uint64_t{x0} * 0xd2511f53u, q = uint64_t{x2} * 0xcd9e8d57u;
    x0 = static_cast<uint32_t>(q >> 32) ^ x1 ^ k0, x1 = static_cast<uint32_t>(q);
    x2 = static_cast<uint32_t>(p >> 32) ^ x3 ^ k1, x3 = static_cast<uint32_t>(p);
    k0 += 0x9e3779b9u, k1 += 0xbb67ae85u;
  }
  words[0] = x0, words[1] = x1, words[2] = x2, words[3] = x3;
}

// DRAW, for the lane whose first element has flat index `flat`; all lanes call it. A lane computes two of the block's
// 64 counters, that of its own number and the one 32 further, whose words belong to elements of other lanes: ballots
// pass the answers on. The words j of all counters are for elements 64 j .. 64 j + 63, those of eight lanes. Out of
// line, because the code is long and used for every target.
__device__ inline __noinline__ uint32_t drawn_mask(uint64_t key, uint32_t limit, int64_t flat) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const uint64_t counter = static_cast<uint64_t>(flat) / kBlock * (kBlock / 4) + static_cast<uint64_t>(lane);
  uint32_t words[2][4], mine = 0;
  philox(counter, key, words[0]);
  philox(counter + kWarp, key, words[1]);
#pragma unroll
  for (int part = 0; part < 8; ++part) {
    const uint32_t ballot = __ballot_sync(kAllLanes, words[part % 2][part / 2] < limit);
    if (lane / 4 == part) mine = ballot;
  }
  return mine >> (8 * (lane % 4)) & 0xffu;
}

__device__ __forceinline__ uint32_t magnitude_bits(float d) { return __float_as_uint(d) & 0x7fffffffu; }

// A cut within one lane, whose first element has flat index `flat`: of its first `ties` elements, those at the
// threshold are in the cut.
struct LaneCut {
  int32_t threshold, ties;

  __device__ __forceinline__ LaneCut(const fuseo1_cut& cut, int64_t flat)
      : threshold(static_cast<int32_t>(cut.threshold)),
        ties(cut.tie_limit < flat ? 0 : static_cast<int32_t>(min(cut.tie_limit - flat, int64_t{kLane - 1})) + 1) {}
  __device__ __forceinline__ bool has(float d, int j) const {
    return static_cast<int32_t>(magnitude_bits(d)) > threshold - (j < ties ? 1 : 0);
  }
};

__device__ __forceinline__ uint32_t band_mask(const fuseo1_select& select, int64_t flat, const float* d) {
  const LaneCut keep(select.keep, flat), drop(select.drop, flat);
  uint32_t selected = 0;
#pragma unroll
  for (int j = 0; j < kLane; ++j) {
    selected |= static_cast<uint32_t>(keep.has(d[j], j) && !drop.has(d[j], j)) << j;
  }
  return selected;
}

// A bit for each selected element of d, a lane's eight elements of one target from `at` on, of which `count` exist;
// `flat` is the first one's index in the tensor. All lanes call it.
__device__ __forceinline__ uint32_t select_mask(const fuseo1_select& select, int64_t at, int64_t flat, int count,
                                                const float* d) {
  switch (select.kind) {
    case FUSEO1_SELECT_BAND:
      return band_mask(select, flat, d);
    case FUSEO1_SELECT_DRAW:
      return drawn_mask(select.key, select.limit, flat);
    case FUSEO1_SELECT_BITS:
      return count > 0 ? static_cast<uint32_t>(select.bits[at / 64] >> (at % 64)) & 0xffu : 0u;
    default:
      return 0xffu;
  }
}

// Turns d into z, its selected part. Elements that are not finite always take part.
__device__ __forceinline__ void apply_select(const fuseo1_select& select, int64_t at, int64_t flat, int count,
                                             float* d) {
  if (select.kind == FUSEO1_SELECT_ALL) return;
  if (select.kind == FUSEO1_SELECT_CLAMP) {
#pragma unroll
    for (int j = 0; j < kLane; ++j) {
      if (isfinite(d[j]) && fabsf(d[j]) > select.most) d[j] = copysignf(select.most, d[j]);
    }
    return;
  }
  const uint32_t selected = select_mask(select, at, flat, count, d);
#pragma unroll
  for (int j = 0; j < kLane; ++j) {
    if (!(selected >> j & 1u) && isfinite(d[j])) d[j] = 0.0f;
  }
}

// Whether a RANKED is within the contract for a chunk of `count` elements from flat index `offset` on.
inline bool valid_ranked(const fuseo1_select& select, int64_t offset, int64_t count) {
  return select.row >= 1 && select.row <= INT32_MAX && select.low >= 0 && select.span >= 0 &&
         select.low + select.span < 1 && offset % select.row == 0 && count % select.row == 0;
}

// Whether a target's selection is within the contract (`bits` is device memory).
inline bool valid_select(const fuseo1_select& select, int64_t offset, int64_t count) {
  switch (select.kind) {
    case FUSEO1_SELECT_BAND:
      return !select.rows.factors || select.rows.row >= 1;
    case FUSEO1_SELECT_BITS:
      return select.bits || !count;
    case FUSEO1_SELECT_CLAMP:
      return select.most >= 0;
    case FUSEO1_SELECT_RANKED:
      return valid_ranked(select, offset, count);
    default:
      return select.kind == FUSEO1_SELECT_ALL || select.kind == FUSEO1_SELECT_DRAW;
  }
}

// All targets' selections, by value, so that no table in memory is read.
struct Selects {
  fuseo1_select of[FUSEO1_CUDA_MAX_TARGETS];
  int32_t any;  // whether any is not ALL

  // False if one is outside the contract for `count` elements from flat index `offset` on. `given` nullptr: everything
  // is selected.
  bool copy(const fuseo1_select* given, int32_t targets, int64_t offset, int64_t count) {
    int64_t row = 0;  // of the RANKED ones
    for (int i = 0; given && i < targets; ++i) {
      if (!valid_select(given[i], offset, count)) return false;
      of[i] = given[i], any |= given[i].kind != FUSEO1_SELECT_ALL;
      if (given[i].kind != FUSEO1_SELECT_RANKED) continue;
      if (row && row != given[i].row) return false;
      row = given[i].row;
    }
    return true;
  }
};

}  // namespace fuseo1
#endif  // FUSEO1_CUDA_SELECT_CUH_
