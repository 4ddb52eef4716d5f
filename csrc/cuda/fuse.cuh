// SPDX-License-Identifier: Apache-2.0
// fuse (include/fuseo1/fuse.h) on a warp's block: by the filter (common/filter.h), exactly where that leaves a result
// open.
#ifndef FUSEO1_CUDA_FUSE_CUH_
#define FUSEO1_CUDA_FUSE_CUH_

#include "block.cuh"
#include "filter.h"
#include "fuseo1/fuse.h"
#include "output.cuh"
#include "score_filter.cuh"
#include "state.cuh"

namespace fuseo1 {

// The CTAs that a multiprocessor should hold at once of a kernel that fuses: five hide the memory's latency, if
// registers suffice.
template <int kN>
constexpr int held_at_once() {
  return kN > 4 ? 1 : kN == 4 ? 4 : 5;
}

// The parameters of fuse, and the filter's.
struct FuseParams {
  double weights[FUSEO1_CUDA_MAX_TARGETS], shares[FUSEO1_CUDA_MAX_TARGETS];
  double divisor, floor, scale, base_scale;
  int32_t elect, masked;
  uint32_t threshold;
  int64_t tie_limit;
  FilterNumbers<FUSEO1_CUDA_MAX_TARGETS> filter;
  int32_t filters;  // its bounds hold
  int32_t has_alone;
  double alone[FUSEO1_CUDA_MAX_TARGETS];

  FUSEO1_HOST_DEVICE FilterTerms terms(int targets) const {
    return {weights,    shares,      has_alone ? alone : nullptr, targets, elect, divisor, floor, scale,
            base_scale, masked != 0, targets <= kMostInTable};
  }
};

// One element: the base, and z of every target.
template <int kN>
struct Column {
  float base;
  float z[kN];
};

// E of one element; NaN if the votes are not finite. `kept`: the element is selected by score.
template <int kN>
__device__ __forceinline__ double exact_merge(const FuseParams& params, const Column<kN>& column, int targets,
                                              bool kept) {
  const bool by_sum = params.elect == FUSEO1_ELECT_SUM, by_count = params.elect == FUSEO1_ELECT_COUNT;
  const bool none = params.elect == FUSEO1_ELECT_NONE;
  const auto term = [&](int i) { return __dmul_rn(params.weights[i], static_cast<double>(column.z[i])); };
  double s = -0.0;
  float sum_of_z = -0.0f;
  bool finite = true;
#pragma unroll
  for (int i = 0; i < kN; ++i) {
    if (!is_target<kN>(i, targets)) continue;
    const double t = term(i);
    if (by_count) finite = finite && isfinite(t);
    sum_of_z = __fadd_rn(sum_of_z, column.z[i]);
    s = __dadd_rn(s, !by_count ? t : t > 0 ? 1.0 : t < 0 ? -1.0 : 0.0);
  }
  if (by_sum) s = sum_of_z;
  if (!finite || !isfinite(s)) return __longlong_as_double(0x7ff8000000000000ll);
  const bool negative = !(s >= 0);
  double num = -0.0, den = 0.0;  // x + -0.0 is x, for x = -0.0 too
  double alone = 1.0;
  int survivors = 0;
#pragma unroll
  for (int i = 0; i < kN; ++i) {
    if (!is_target<kN>(i, targets)) continue;
    const double t = term(i), vote = by_sum ? column.z[i] : t;
    if (!kept || !(none ? t != 0 : (negative ? -vote : vote) > 0)) continue;
    num = __dadd_rn(num, t);
    den = __dadd_rn(den, params.shares[i]);
    if (params.has_alone) alone = params.alone[i];
    ++survivors;
  }
  const double base = __dmul_rn(params.base_scale, column.base);
  if (survivors == 0) return base;
  if (survivors == 1) num = __dmul_rn(alone, num);
  if (params.divisor != 1) {
    const double over = params.divisor != 0 ? params.divisor
                        : params.floor == 0 ? (fabs(den) < least_divisor(params.elect) ? 1.0 : den)
                                            : (den > params.floor ? den : params.floor);
    num = __ddiv_rn(num, over);
  }
  return __dadd_rn(base, __dmul_rn(params.scale, num));
}

// The same, rounded once. Out of line: few elements need it, unless the output is fp32.
template <int kN, class Out>
__device__ __noinline__ uint32_t exact_result(const FuseParams& params, const Column<kN> column, int targets,
                                              bool kept) {
  return result_of<Out>(exact_merge<kN>(params, column, targets, kept));
}

// The fp32 result of one element: |result - E| < error.
struct Estimate {
  float result, error;
};

// The doubts about a lane's estimates, which void them: a magnitude that is not finite or too large (`peak`), and an
// election whose outcome is not certain (the sign bit of `signs`).
struct Doubt {
  float peak = 0.0f;
  uint32_t signs = 0;
};

// x with its sign flipped if s is negative, as bits: one instruction.
__device__ __forceinline__ int32_t towards(float x, float s) {
#ifdef __CUDA_ARCH__
  uint32_t bits;
  asm("lop3.b32 %0, %1, %2, 0x80000000, 0x78;" : "=r"(bits) : "r"(__float_as_uint(x)), "r"(__float_as_uint(s)));
  return static_cast<int32_t>(bits);
#else
  return static_cast<int32_t>(__float_as_uint(x) ^ (__float_as_uint(s) & 0x80000000u));
#endif
}

// A kernel is compiled for one of fuse.h's elections, for any of them, or for SCE's parameters, which divide by the sum
// of the survivors' weights.
constexpr int kAnyElection = -1, kSce = -2;

// The filter's numbers of a kernel, in registers but for the table.
template <int kN, int kHow>
class Filter {
 public:
  // `params` is in shared memory: lanes may look up different factors.
  __device__ __forceinline__ Filter(const FuseParams& params, int targets)
      : numbers_(params.filter), targets_(targets), elect_(params.elect) {
    fixed_ = kHow != kSce && params.divisor != 0.0;
    usable_ = params.filters;
    by_delta_ = numbers_.by_delta, by_result_ = numbers_.by_result, least_ = numbers_.least;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      weights_[i] = numbers_.weights[i];
      vote_errors_[i] = __fmul_rn(numbers_.by_votes, weights_[i]);
    }
  }

  // Its bounds hold.
  __device__ __forceinline__ bool usable() const { return usable_; }

  // Of element j. `kept`: all bits if the element is selected by score, else 0.
  __device__ __forceinline__ Estimate estimate(const float (*z)[kLane], int j, float base, uint32_t kept,
                                               Doubt* doubt) const {
    const int elect = kHow == kSce ? FUSEO1_ELECT_SUM : kHow == kAnyElection ? elect_ : kHow;
    const bool none = elect == FUSEO1_ELECT_NONE;
    float s = elect == FUSEO1_ELECT_SUM ? -0.0f : 0.0f;
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      if (none || !is_target<kN>(i, targets_)) continue;
      const float x = z[i][j];
      if (elect == FUSEO1_ELECT_SUM) {
        s = i ? __fadd_rn(s, x) : x;
      } else if (elect == FUSEO1_ELECT_WEIGHTED) {
        s = __fmaf_rn(weight(i), x, s);
      } else {
        if (x != 0.0f) s = __fadd_rn(s, copysignf(1.0f, x));
        doubt->peak = max_or_nan(doubt->peak, x);
      }
    }
    doubt->peak = max_or_nan(doubt->peak, s);
    if (elect == FUSEO1_ELECT_WEIGHTED) {
      float margin = fabsf(s);  // of the vote over its error
#pragma unroll
      for (int i = 0; i < kN; ++i) {
        if (is_target<kN>(i, targets_)) margin = __fmaf_rn(-vote_error(i), fabsf(z[i][j]), margin);
      }
      doubt->signs |= __float_as_uint(margin);
    }
    float num = 0.0f, den = 0.0f, size = 0.0f;
    const float* factor = numbers_.factors;  // by the set of survivors
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      if (!is_target<kN>(i, targets_)) continue;
      const float x = z[i][j];
      if (!(none ? x != 0.0f : towards(x, s) > 0)) continue;
      num = __fmaf_rn(weight(i), x, num);
      if (none) size = __fmaf_rn(fabsf(weight(i)), fabsf(x), size);
      if (kTable) {
        factor += 1 << i;
      } else {
        den = __fadd_rn(den, kHow == kSce ? weight(i) : numbers_.shares[i]);
      }
    }
    const float times = kTable ? *factor : fixed_ ? *factor : over(den);
    const float delta = __uint_as_float(__float_as_uint(__fmul_rn(num, times)) & kept);
    const float result = kHow == kSce ? __fadd_rn(base, delta) : __fmaf_rn(numbers_.base_scale, base, delta);
    doubt->peak = max_or_nan(doubt->peak, result);
    const float of_delta = none ? __fmul_rn(size, times) : fabsf(delta);
    return {result, __fmaf_rn(by_delta_, of_delta, __fmaf_rn(by_result_, fabsf(result), least_))};
  }

 private:
  static constexpr bool kTable = kN <= kMostInTable;
  static constexpr int kHeld = kTable ? kN : 1;

  __device__ __forceinline__ float weight(int i) const { return kTable ? weights_[i] : numbers_.weights[i]; }
  __device__ __forceinline__ float vote_error(int i) const {
    return kTable ? vote_errors_[i] : __fmul_rn(numbers_.by_votes, numbers_.weights[i]);
  }
  __device__ __forceinline__ float over(float den) const {
    return __fdividef(numbers_.scale, numbers_.floor != 0.0f ? fmaxf(den, numbers_.floor) : den > 0.0f ? den : 1.0f);
  }

  const FilterNumbers<FUSEO1_CUDA_MAX_TARGETS>& numbers_;
  int targets_, elect_;
  bool fixed_, usable_;
  float weights_[kHeld], vote_errors_[kHeld], by_delta_, by_result_, least_;
};

// Merges a lane's elements, and returns how many of them are infinite or NaN. A block's d are z.
template <int kN, int kHow, class Out, class In>
__device__ __forceinline__ uint32_t merge_lane(const FuseParams& params, const Filter<kN, kHow>& filter,
                                               const Block<kN, In>& block, int targets, const Kept& kept, int count,
                                               Results<Out>* results) {
  uint32_t open = 0xffu;
  if constexpr (Out::kNarrow) {
    if (filter.usable()) {
      Doubt doubt;
      uint32_t low[kLane / 2], differ = 0;
#pragma unroll
      for (int j = 0; j < kLane; j += 2) {
        const Estimate a = filter.estimate(block.d, j, block.base[j], kept.mask[j], &doubt);
        const Estimate b = filter.estimate(block.d, j + 1, block.base[j + 1], kept.mask[j + 1], &doubt);
        low[j / 2] = Out::round_pair(__fsub_rn(a.result, a.error), __fsub_rn(b.result, b.error));
        results->words[j / 2] = Out::round_pair(__fadd_rn(a.result, a.error), __fadd_rn(b.result, b.error));
        differ |= low[j / 2] ^ results->words[j / 2];
      }
      const bool certain = doubt.peak < Out::kSafe && !(doubt.signs >> 31);
      if (differ == 0 && certain) return 0;
      if (certain) open = 0;
#pragma unroll
      for (int j = 0; j < kLane; j += 2) {
        if (low[j / 2] != results->words[j / 2]) open |= 3u << j;
      }
    }
  }
  uint32_t nonfinite = 0;
#pragma unroll
  for (int j = 0; j < kLane; ++j) {
    if (!(open >> j & 1u)) continue;
    Column<kN> column;
    column.base = block.base[j];
#pragma unroll
    for (int i = 0; i < kN; ++i) column.z[i] = block.d[i][j];
    const uint32_t exact = exact_result<kN, Out>(params, column, targets, kept.mask[j] != 0);
    results->set(j, exact);
    nonfinite += j < count && (exact & Out::kAbs) >= Out::kInf;
  }
  return nonfinite;
}

// The same, written to `out` from element `at` on.
template <int kN, int kHow, class In>
__device__ __forceinline__ uint32_t merge_to(const Output& out, const FuseParams& params,
                                             const Filter<kN, kHow>& filter, const Block<kN, In>& block, int targets,
                                             const Kept& kept, int64_t at, int count) {
  const auto merge = [&](auto format) {
    Results<decltype(format)> results;
    const uint32_t nonfinite = merge_lane<kN, kHow>(params, filter, block, targets, kept, count, &results);
    results.store(at, count, out);
    return nonfinite;
  };
  if (out.dtype == FUSEO1_BF16) return merge(ToBf16());
  if (out.dtype == FUSEO1_FP16) return merge(ToFp16());
  return merge(ToFp32());
}

// Fuses every `warps`-th block from `warp` on; element 0 of the operands and the output has flat index `offset`.
// `masked`: elements are selected by score; `select` turns a block's d into z. Returns how many of a lane's outputs are
// infinite or NaN.
template <int kN, int kHow, class In, class Select>
__device__ __forceinline__ uint32_t fuse_blocks(const Inputs& in, const FuseParams& params, bool masked, int64_t offset,
                                                const Output& out, int64_t warp, int64_t warps, const Select& select) {
  const Divisor divisor(number_of<kN>(in.targets));
  const Filter<kN, kHow> filter(params, in.targets);
  const ThresholdFilter by_score(number_of<kN>(in.targets), params.threshold);
  uint32_t nonfinite = 0;
  for_blocks(in.numel, warp, warps, [&](int64_t at, int count) {
    Block<kN, In> block;
    block.load(in, at, count);
    Kept kept(~0u);
    if (masked && kHow == kSce) {
      kept = by_score.kept(block, in.targets, [&](int j, uint32_t score) {
        return in_cut(score, offset + at + j, params.threshold, params.tie_limit);
      });
    } else if (kHow != kSce) {
      uint32_t bits = 0xffu;
      if (masked) {
        uint32_t scores[kLane];
        block.score(divisor, in.targets, scores);
        bits = cut_mask(scores, offset + at, params.threshold, params.tie_limit);
      }
      select(&block, at, count);
      kept = Kept::of_bits(bits);
    }
    nonfinite += merge_to(out, params, filter, block, in.targets, kept, at, count);
  });
  return nonfinite;
}

}  // namespace fuseo1
#endif  // FUSEO1_CUDA_FUSE_CUH_
