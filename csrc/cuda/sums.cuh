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
  int32_t doubtful;  // some of these are not 0, if anybody asked
  union {
    Bins norms[2];  // of all elements, of the selected ones
    Count gram[kGramPairs][kExponents];
  };
};
static_assert(sizeof(SumsWork) <= FUSEO1_CUDA_SUMS_BYTES, "cuda.h says how much is asked for");

// What is told of every survey; by the threads of a CTA.
__device__ __forceinline__ void settle_rest(const SumsWork* work, int32_t passes, fuseo1_cuda_sums* result) {
  const int i = static_cast<int>(threadIdx.x);
  if (i < FUSEO1_CUDA_MAX_TARGETS + 2) result->nonfinite[i] = static_cast<int64_t>(work->nonfinite[i]);
  if (i == 0) result->passes = passes;
}

}  // namespace fuseo1
#endif  // FUSEO1_CUDA_SUMS_CUH_
