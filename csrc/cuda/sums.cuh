// SPDX-License-Identifier: Apache-2.0
// What the surveys of sums, norms and inner products, work in.
#ifndef FUSEO1_CUDA_SUMS_CUH_
#define FUSEO1_CUDA_SUMS_CUH_

#include "state.cuh"
#include "weights.cuh"

namespace fuseo1 {

// A survey of inner products takes so many targets at once: CTAs hold the sums of all pairs of their vectors.
constexpr int kGramTargets = 4, kGramPairs = (kGramTargets + 1) * (kGramTargets + 2) / 2;

// In global memory: what CTAs add up, by exponent. Sums of products have signs, in two's complement.
struct SumsWork {
  Count nonfinite[FUSEO1_CUDA_MAX_TARGETS + 2];
  union {
    Bins norms[2];  // of all elements, of the selected ones
    Count gram[kGramPairs][kExponents];
  };
};
static_assert(sizeof(SumsWork) <= FUSEO1_CUDA_SUMS_BYTES, "cuda.h says how much is asked for");

// Whether any element's s is not finite, going by the counts of an earlier launch.
__device__ __forceinline__ bool any_nonfinite(const Count* counts) {
  Count all = 0;
  for (int i = 0; i < FUSEO1_CUDA_MAX_TARGETS + 2; ++i) all |= counts[i];
  return all != 0;
}

// A bit for each of a lane's elements whose s is not finite: element by element, for rare paths. Counts the culprits in
// `counts` (base, targets, overflows; none if null).
__device__ __forceinline__ uint32_t excluded_mask(const Inputs& in, int64_t at, int count, Count* counts) {
  uint32_t excluded = 0;
  for (int j = 0; j < count; ++j) {
    const float base = load_one(in.operands[0], at + j);
    float s = -0.0f;
    for (int i = 1; i <= in.targets; ++i) s = __fadd_rn(s, __fsub_rn(load_one(in.operands[i], at + j), base));
    if (isfinite(s)) continue;
    excluded |= 1u << j;
    bool all_finite = true;
    for (int i = 0; i <= in.targets; ++i) {
      const bool bad = !isfinite(load_one(in.operands[i], at + j));
      if (bad && counts) atomicAdd(&counts[i], Count{1});
      all_finite &= !bad;
    }
    if (all_finite && counts) atomicAdd(&counts[in.targets + 1], Count{1});
  }
  return excluded;
}

// What is told of every survey; by the threads of a CTA.
__device__ __forceinline__ void settle_rest(const SumsWork* work, int32_t passes, fuseo1_cuda_sums* result) {
  const int i = static_cast<int>(threadIdx.x);
  if (i < FUSEO1_CUDA_MAX_TARGETS + 2) result->nonfinite[i] = static_cast<int64_t>(work->nonfinite[i]);
  if (i == 0) result->passes = passes;
}

}  // namespace fuseo1
#endif  // FUSEO1_CUDA_SUMS_CUH_
