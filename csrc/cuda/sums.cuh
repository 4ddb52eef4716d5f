// SPDX-License-Identifier: Apache-2.0
// The workspace of the surveys that only sum: norms, overlaps and inner products.
#ifndef FUSEO1_CUDA_SUMS_CUH_
#define FUSEO1_CUDA_SUMS_CUH_

#include "state.cuh"
#include "weights.cuh"

namespace fuseo1 {

// A survey of inner products takes so many targets at once: a CTA holds the sums of all pairs of their vectors.
constexpr int kGramTargets = 4, kGramPairs = (kGramTargets + 1) * (kGramTargets + 2) / 2;

// The sums of all CTAs by exponent, in global memory. Sums of products are signed, in two's complement.
struct SumsWork {
  Count nonfinite[FUSEO1_CUDA_MAX_TARGETS + 2];
  int32_t doubtful;  // whether some of these are not 0; set by settle_nonfinite
  union {
    Bins norms[2];  // of all elements, of the selected ones; or the counts of overlaps, together and alone
    Count gram[kGramPairs][kExponents];
  };
};
static_assert(sizeof(SumsWork) <= FUSEO1_CUDA_SUMS_BYTES, "cuda.h says how much is asked for");

// Writes the fields that all these surveys have; all threads of a CTA call it.
__device__ __forceinline__ void settle_rest(const SumsWork* work, int32_t passes, fuseo1_cuda_sums* result) {
  const int i = static_cast<int>(threadIdx.x);
  if (i < FUSEO1_CUDA_MAX_TARGETS + 2) result->nonfinite[i] = static_cast<int64_t>(work->nonfinite[i]);
  if (i == 0) result->passes = passes;
}

}  // namespace fuseo1
#endif  // FUSEO1_CUDA_SUMS_CUH_
