// SPDX-License-Identifier: Apache-2.0
// fuse (include/fuseo1/fuse.h) on a warp's block: by the filter (common/filter.h), exactly where that leaves a result
// open.
#ifndef FUSEO1_CUDA_FUSE_CUH_
#define FUSEO1_CUDA_FUSE_CUH_

#include "block.cuh"
#include "filter.h"
#include "fuseo1/fuse.h"
#include "output.cuh"
#include "state.cuh"

namespace fuseo1 {

// The CTAs that a multiprocessor should hold at once of a kernel that fuses: five hide the memory's latency, if
// registers suffice.
template <int kN, class In>
constexpr int held_at_once() {
  constexpr bool kAllBf16 = sizeof(typename In::Raw) == 16;
  return kN > 4 || !kAllBf16 ? 1 : kN == 4 ? 4 : 5;
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

// The filter's numbers of a kernel, in registers but for the table. kSce: SCE's election, divided by the sum of the
// survivors' weights.
template <int kN, bool kSce>
class Filter {
 public:
  // `params` is in shared memory: lanes may look up different factors.
  __device__ __forceinline__ Filter(const FuseParams& params, int targets)
      : numbers_(params.filter), targets_(targets), elect_(kSce ? FUSEO1_ELECT_SUM : params.elect) {
    fixed_ = !kSce && params.divisor != 0.0;
    by_delta_ = numbers_.by_delta, by_result_ = numbers_.by_result, least_ = numbers_.least;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) weights_[i] = numbers_.weights[i];
  }

  // Of element j. `peak` grows to the largest magnitude that must be finite; `kept`: the element is selected by score.
  __device__ __forceinline__ Estimate estimate(const float (*z)[kLane], int j, float base, bool kept,
                                               float* peak) const {
    const bool none = elect_ == FUSEO1_ELECT_NONE;
    float s = elect_ == FUSEO1_ELECT_SUM ? -0.0f : 0.0f, votes = 0.0f;
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      if (none || !is_target<kN>(i, targets_)) continue;
      const float x = z[i][j];
      if (elect_ == FUSEO1_ELECT_SUM) {
        s = i ? __fadd_rn(s, x) : x;
      } else if (elect_ == FUSEO1_ELECT_WEIGHTED) {
        s = __fmaf_rn(weight(i), x, s);
        votes = __fmaf_rn(weight(i), fabsf(x), votes);
      } else {
        s = __fadd_rn(s, x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : 0.0f);
        *peak = max_or_nan(*peak, x);
      }
    }
    *peak = max_or_nan(*peak, s);
    // With signs flipped where s < 0, "has the elected sign" is "> 0"; -0.0 is a sum of nothing else.
    const uint32_t flip = __float_as_uint(s) & 0x80000000u;
    float num = 0.0f, den = 0.0f, size = 0.0f;
    int set = 0;
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      if (!is_target<kN>(i, targets_)) continue;
      const float x = z[i][j];
      if (!(kept && (none ? x != 0.0f : __uint_as_float(__float_as_uint(x) ^ flip) > 0.0f))) continue;
      num = __fmaf_rn(weight(i), x, num);
      if (none) size = __fmaf_rn(fabsf(weight(i)), fabsf(x), size);
      if (kTable) {
        set += 1 << i;
      } else {
        den = __fadd_rn(den, kSce ? weight(i) : numbers_.shares[i]);
      }
    }
    const float times = fixed_ ? numbers_.factors[0] : kTable ? numbers_.factors[set] : over(den);
    const float delta = __fmul_rn(num, times);
    const float result = __fadd_rn(kSce ? base : __fmul_rn(numbers_.base_scale, base), delta);
    *peak = max_or_nan(*peak, result);
    const float of_delta = none ? __fmul_rn(size, times) : fabsf(delta);
    float error = __fmaf_rn(by_delta_, of_delta, __fmaf_rn(by_result_, fabsf(result), least_));
    // The sign of s is not certain.
    if (elect_ == FUSEO1_ELECT_WEIGHTED && !(fabsf(s) >= numbers_.by_votes * votes)) error = __uint_as_float(kInfBits);
    return {result, error};
  }

 private:
  static constexpr bool kTable = kN <= kMostInTable;
  static constexpr int kHeld = kTable ? kN : 1;

  __device__ __forceinline__ float weight(int i) const { return kTable ? weights_[i] : numbers_.weights[i]; }
  __device__ __forceinline__ float over(float den) const {
    return __fdividef(numbers_.scale, numbers_.floor != 0.0f ? fmaxf(den, numbers_.floor) : den > 0.0f ? den : 1.0f);
  }

  const FilterNumbers<FUSEO1_CUDA_MAX_TARGETS>& numbers_;
  int targets_, elect_;
  bool fixed_;
  float weights_[kHeld], by_delta_, by_result_, least_;
};

// Merges a lane's elements, and returns how many of them are infinite or NaN. A block's d are z; `kept` has a bit for
// each element that is selected by score.
template <int kN, bool kSce, class Out, class In>
__device__ __forceinline__ uint32_t merge_lane(const FuseParams& params, const Filter<kN, kSce>& filter,
                                               const Block<kN, In>& block, int targets, uint32_t kept, int count,
                                               Results<Out>* results) {
  uint32_t open = 0xffu;
  if constexpr (Out::kNarrow) {
    if (params.filters) {
      float peak = 0.0f;
      open = 0;
#pragma unroll
      for (int j = 0; j < kLane; j += 2) {
        const Estimate a = filter.estimate(block.d, j, block.base[j], kept >> j & 1u, &peak);
        const Estimate b = filter.estimate(block.d, j + 1, block.base[j + 1], kept >> (j + 1) & 1u, &peak);
        const uint32_t low = Out::round_pair(__fsub_rn(a.result, a.error), __fsub_rn(b.result, b.error));
        const uint32_t high = Out::round_pair(__fadd_rn(a.result, a.error), __fadd_rn(b.result, b.error));
        results->words[j / 2] = high;
        if (low != high) open |= 3u << j;
      }
      if (!(peak < Out::kSafe)) open = 0xffu;
      if (open == 0) return 0;
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
    const uint32_t exact = exact_result<kN, Out>(params, column, targets, kept >> j & 1u);
    results->set(j, exact);
    nonfinite += j < count && (exact & Out::kAbs) >= Out::kInf;
  }
  return nonfinite;
}

// The same, written to `out` from element `at` on.
template <int kN, bool kSce, class In>
__device__ __forceinline__ uint32_t merge_to(const Output& out, const FuseParams& params,
                                             const Filter<kN, kSce>& filter, const Block<kN, In>& block, int targets,
                                             uint32_t kept, int64_t at, int count) {
  const auto merge = [&](auto format) {
    Results<decltype(format)> results;
    const uint32_t nonfinite = merge_lane<kN, kSce>(params, filter, block, targets, kept, count, &results);
    results.store(at, count, out.data);
    return nonfinite;
  };
  if (out.dtype == FUSEO1_BF16) return merge(ToBf16());
  if (out.dtype == FUSEO1_FP16) return merge(ToFp16());
  return merge(ToFp32());
}

// Fuses every `warps`-th block from `warp` on; element 0 of the operands and the output has flat index `offset`.
// `masked`: elements are selected by score; `select` turns a block's d into z. Returns how many of a lane's outputs are
// infinite or NaN.
template <int kN, bool kSce, class In, class Select>
__device__ __forceinline__ uint32_t fuse_blocks(const Inputs& in, const FuseParams& params, bool masked, int64_t offset,
                                                const Output& out, int64_t warp, int64_t warps, const Select& select) {
  const Divisor divisor(in.targets);
  const Filter<kN, kSce> filter(params, in.targets);
  uint32_t nonfinite = 0;
  for_blocks(in.numel, warp, warps, [&](int64_t at, int count) {
    Block<kN, In> block;
    block.load(in, at, count);
    uint32_t kept = 0xffu;
    if (masked) {
      uint32_t scores[kLane];
      block.score(divisor, in.targets, scores);
      kept = cut_mask(scores, offset + at, params.threshold, params.tie_limit);
    }
    select(&block, at, count);
    nonfinite += merge_to(out, params, filter, block, in.targets, kept, at, count);
  });
  return nonfinite;
}

}  // namespace fuseo1
#endif  // FUSEO1_CUDA_FUSE_CUH_
