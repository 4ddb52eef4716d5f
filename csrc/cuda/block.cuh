// SPDX-License-Identifier: Apache-2.0
// A warp's block of 256 elements in registers: task vectors, score, energy quanta (include/fuseo1/survey.h).
#ifndef FUSEO1_CUDA_BLOCK_CUH_
#define FUSEO1_CUDA_BLOCK_CUH_

#include "element.cuh"
#include "fuseo1/cuda.h"

namespace fuseo1 {

// The inputs of a kernel, by value: no pointer table in memory. operands[0] is the base.
struct Inputs {
  fuseo1_operand operands[FUSEO1_CUDA_MAX_TARGETS + 1];
  int32_t targets;
  int32_t aligned;  // all of them, to 16 bytes
  int64_t numel;
};

__device__ __forceinline__ uint32_t warp_max(uint32_t v) { return __reduce_max_sync(kAllLanes, v); }
__device__ __forceinline__ uint32_t warp_sum(uint32_t v) { return __reduce_add_sync(kAllLanes, v); }

// How many of a lane's eight elements from `at` on there are.
__device__ __forceinline__ int count_at(int64_t numel, int64_t at) {
  const int64_t left = numel - at;
  return max(left < kLane ? static_cast<int>(left) : kLane, 0);
}

// Whether there is a target i. kN is the most targets of an instance; up to 4 it is their exact number.
template <int kN>
__device__ __forceinline__ bool is_target(int i, int targets) {
  return kN <= 4 || i < targets;
}

// How many there are: a constant where kN says so.
template <int kN>
__device__ __forceinline__ int number_of(int targets) {
  return kN <= 4 ? kN : targets;
}

// x / n, correctly rounded, for a whole n that divides many x: one Markstein step from the rounded reciprocal. This
// holds where no intermediate under- or overflows; *doubtful is set where one might.
struct Divisor {
  float n, reciprocal;
  explicit __device__ __forceinline__ Divisor(int targets) {
    n = static_cast<float>(targets);
    reciprocal = __fdiv_rn(1.0f, n);
  }

  __device__ __forceinline__ float divide(float x, bool* doubtful) const {
    constexpr uint32_t kLeast = 0x0d000000u, kMost = 0x7e800000u;  // 2^-101, 2^126
    const uint32_t magnitude = __float_as_uint(x) & 0x7fffffffu;
    *doubtful |= magnitude - kLeast >= kMost - kLeast && magnitude != 0;
    const float q = __fmul_rn(x, reciprocal);
    return __fmaf_rn(__fmaf_rn(-q, n, x), reciprocal, q);
  }
};

// The nearest number whose square is finite.
__device__ __forceinline__ float clamp_square(float d) {
  const float most = __uint_as_float(kMaxSquarableBits);
  return fminf(fmaxf(d, -most), most);
}

// Counts why an element's s is not finite: by input that is not finite, or as an overflow of finite inputs.
__device__ __forceinline__ void count_causes(const Inputs& in, int64_t at, unsigned long long* counts) {
  bool all_finite = true;
  for (int i = 0; i <= in.targets; ++i) {
    const bool bad = !isfinite(load_one(in.operands[i], at));
    if (bad) atomicAdd(&counts[i], 1ull);
    all_finite &= !bad;
  }
  if (all_finite) atomicAdd(&counts[in.targets + 1], 1ull);
}

// An element's task vectors.
template <int kN>
struct Deltas {
  float of[kN];
};

// Its score, whatever under- or overflows. Out of line.
template <int kN>
__device__ __noinline__ uint32_t careful_score(const Deltas<kN> d, int targets) {
  const float n = static_cast<float>(targets);
  float s = d.of[0], v = 0.0f;
#pragma unroll
  for (int i = 1; i < kN; ++i) s = is_target<kN>(i, targets) ? __fadd_rn(s, d.of[i]) : s;
  const float mean = __fdiv_rn(s, n);
#pragma unroll
  for (int i = 0; i < kN; ++i) {
    if (!is_target<kN>(i, targets)) continue;
    const float away = __fsub_rn(d.of[i], mean), square = __fmul_rn(away, away);
    v = i ? __fadd_rn(v, square) : square;
  }
  return __float_as_uint(__fdiv_rn(v, n));
}

// A lane's part of a block. Elements beyond the tensor's end are zeros in every operand, and add nothing to any sum.
template <int kN, class In>
struct Block {
  float base[kLane];
  float d[kN][kLane];

  // Loads the eight elements from `at` on, of which `count` (0 or less: none) exist. As many operands are in flight at
  // once as 32 registers hold.
  __device__ __forceinline__ void load(const Inputs& in, int64_t at, int count) {
    constexpr int kMost = 128 / static_cast<int>(sizeof(typename In::Raw)), kAtOnce = kN < kMost ? kN : kMost;
    const bool whole = count >= kLane && in.aligned;
    typename In::Raw raw[kAtOnce], raw_base;
#pragma unroll
    for (int first = 0; first < kN; first += kAtOnce) {
      if (whole) {
        load_raw(in, at, kLane, first, In::load_whole, &raw_base, raw);
      } else {
        load_raw(in, at, count, first, In::load_part, &raw_base, raw);
      }
      if (first == 0) {
#pragma unroll
        for (int j = 0; j < kLane; ++j) base[j] = In::widen(raw_base, in.operands[0].dtype, j);
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
        for (int j = 0; j < kLane; ++j) {
          d[first + i][j] = is_target<kN>(first + i, in.targets)
                                ? __fsub_rn(In::widen(raw[i], in.operands[first + i + 1].dtype, j), base[j])
                                : 0.0f;
        }
      }
    }
  }

  __device__ __forceinline__ float sum(int j, int targets) const {
    float s = d[0][j];
#pragma unroll
    for (int i = 1; i < kN; ++i) {
      if (is_target<kN>(i, targets)) s = __fadd_rn(s, d[i][j]);
    }
    return s;
  }

  // The largest d_i * d_i of the warp's block, as bits; those of infinity and NaN exceed those of every finite number.
  __device__ __forceinline__ uint32_t peak(int i) const {
    uint32_t most = 0;
#pragma unroll
    for (int j = 0; j < kLane; ++j) most = max(most, __float_as_uint(__fmul_rn(d[i][j], d[i][j])));
    return warp_max(most);
  }

  // The rare paths work on a copy in local memory, so that the block itself never leaves the registers.

  // Sets elements whose s is not finite to 0, and counts their causes in `counts` (unless nullptr).
  __device__ __forceinline__ void sanitize(const Inputs& in, int64_t at, int count, unsigned long long* counts) {
    Block copy = *this;
    copy.sanitize_here(in, at, count, counts);
    *this = copy;
  }

  // Clamps every d_i so that its square is finite. Call it after the scores are computed.
  __device__ __forceinline__ void clamp_squares() {
    Block copy = *this;
    copy.clamp_here();
    *this = copy;
  }

  // The score of element j.
  __device__ __forceinline__ uint32_t score_of(int j, const Divisor& count, int targets) const {
    bool doubtful = false;
    const float mean = count.divide(sum(j, targets), &doubtful);
    const float score = count.divide(squares(j, mean, targets), &doubtful);
    if (!doubtful) return __float_as_uint(score);
    Deltas<kN> column;
#pragma unroll
    for (int i = 0; i < kN; ++i) column.of[i] = d[i][j];
    return careful_score<kN>(column, targets);
  }

  // The eight scores: variances, as fp32 bits.
  __device__ __forceinline__ void score(const Divisor& count, int targets, uint32_t* scores) const {
    bool doubtful = false;
#pragma unroll
    for (int j = 0; j < kLane; ++j) {
      const float mean = count.divide(sum(j, targets), &doubtful);
      scores[j] = __float_as_uint(count.divide(squares(j, mean, targets), &doubtful));
    }
    if (doubtful) {
      const Block copy = *this;
      uint32_t careful[kLane];
      copy.score_carefully(count.n, targets, careful);
#pragma unroll
      for (int j = 0; j < kLane; ++j) scores[j] = careful[j];
    }
  }

 private:
  // Loads the targets from number `first` on, and with the first of them the base.
  template <class Load, int kAtOnce>
  static __device__ __forceinline__ void load_raw(const Inputs& in, int64_t at, int count, int first, const Load& load,
                                                  typename In::Raw* base, typename In::Raw (&raw)[kAtOnce]) {
    if (first == 0) *base = load(in.operands[0], at, count);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (is_target<kN>(first + i, in.targets)) raw[i] = load(in.operands[first + i + 1], at, count);
    }
  }

  __device__ __forceinline__ void sanitize_here(const Inputs& in, int64_t at, int count, unsigned long long* counts) {
    for (int j = 0; j < kLane; ++j) {
      if (j >= count || isfinite(sum_of_column(j, in.targets))) continue;
      if (counts) count_causes(in, at + j, counts);
      for (int i = 0; i < kN; ++i) d[i][j] = 0.0f;
    }
  }

  __device__ __forceinline__ void clamp_here() {
    for (int i = 0; i < kN; ++i) {
      for (int j = 0; j < kLane; ++j) d[i][j] = clamp_square(d[i][j]);
    }
  }

  __device__ __forceinline__ float squares(int j, float mean, int targets) const {
    float away = __fsub_rn(d[0][j], mean);
    float v = __fmul_rn(away, away);
#pragma unroll
    for (int i = 1; i < kN; ++i) {
      if (is_target<kN>(i, targets)) {
        away = __fsub_rn(d[i][j], mean);
        v = __fadd_rn(v, __fmul_rn(away, away));
      }
    }
    return v;
  }

  __device__ __forceinline__ void score_carefully(float n, int targets, uint32_t* scores) const {
    for (int j = 0; j < kLane; ++j) {
      const float mean = __fdiv_rn(sum_of_column(j, targets), n);
      float v = 0.0f;
      for (int i = 0; i < targets; ++i) {
        const float away = __fsub_rn(d[i][j], mean), square = __fmul_rn(away, away);
        v = i ? __fadd_rn(v, square) : square;
      }
      scores[j] = __float_as_uint(__fdiv_rn(v, n));
    }
  }

  __device__ float sum_of_column(int j, int targets) const {
    float s = d[0][j];
    for (int i = 1; i < targets; ++i) s = __fadd_rn(s, d[i][j]);
    return s;
  }
};

// Only the scores of a lane's elements; 0 where s is not finite. Such a score is no number either, so that the rare
// path needs to look at nothing else, and the block stays in registers.
template <int kN>
__device__ __forceinline__ void load_scores(const Inputs& in, int64_t at, int count, const Divisor& divisor,
                                            uint32_t* scores) {
  Block<kN, Mixed> block;
  block.load(in, at, count);
  block.score(divisor, in.targets, scores);
#pragma unroll
  for (int j = 0; j < kLane; ++j) {
    if (scores[j] >= kInfBits && !isfinite(block.sum(j, in.targets))) scores[j] = 0;
  }
}

// Whether a score is above the threshold, or a tie at an index of at most `tie_limit`.
__device__ __forceinline__ bool in_cut(uint32_t score, int64_t index, uint32_t threshold, int64_t tie_limit) {
  return score > threshold || (score == threshold && index <= tie_limit);
}

// A bit for each of a lane's eight elements from `at` on that is in the cut.
__device__ __forceinline__ uint32_t cut_mask(const uint32_t* scores, int64_t at, uint32_t threshold,
                                             int64_t tie_limit) {
  uint32_t selected = 0;
#pragma unroll
  for (int j = 0; j < kLane; ++j) {
    selected |= static_cast<uint32_t>(in_cut(scores[j], at + j, threshold, tie_limit)) << j;
  }
  return selected;
}

__device__ __forceinline__ uint32_t exponent_of(uint32_t peak) { return max(peak >> 23, kMinExponent); }

// t = rint(q * 2^(149-E)) for q >= 0: a square, |d|, or the magnitude of a product; and the same plus kRintMagicBits.
// The factor is a power of two, so the product is exact, or far too small to matter: contracting it changes nothing.
__device__ __forceinline__ uint32_t biased_quantum(float q, float scale) {
  return __float_as_uint(__fmaf_rn(q, scale, kRintMagic));
}
__device__ __forceinline__ uint32_t quantum_of(float q, float scale) {
  return biased_quantum(q, scale) - kRintMagicBits;
}

// Energies by target and exponent, added from any thread.
using Bins = unsigned long long[FUSEO1_CUDA_MAX_TARGETS][kExponents];

}  // namespace fuseo1
#endif  // FUSEO1_CUDA_BLOCK_CUH_
