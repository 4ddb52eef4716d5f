// SPDX-License-Identifier: Apache-2.0
// The end of a survey: writes its result, and the parameters for fuse.
#ifndef FUSEO1_CUDA_SETTLE_CUH_
#define FUSEO1_CUDA_SETTLE_CUH_

#include "state.cuh"
#include "weights.cuh"

namespace fuseo1 {

// One CTA.
__global__ void __launch_bounds__(kThreads, 1)
    settle(const State* state, int32_t targets, int64_t numel, fuseo1_cuda_sce how, fuseo1_cuda_survey* result,
           fuseo1_cuda_params* params) {
  const bool all = how.select_topk == 1.0, none = how.select_topk == 0.0 || numel == 0;
  const int i = static_cast<int>(threadIdx.x);
  if (i < FUSEO1_CUDA_MAX_TARGETS) {
    result->energy[i] = i < targets && (all || !none) ? energy_of(state->energy[state->missed][i]) : 0.0;
  }
  if (i < FUSEO1_CUDA_MAX_TARGETS + 2) result->nonfinite[i] = i < targets + 2 ? state->nonfinite[i] : 0;
  __syncthreads();
  if (i != 0) return;
  const bool scored = !all && !none;
  result->nonzero = scored ? static_cast<int64_t>(state->nonzero) : -1;
  result->selected = scored ? state->selected : all ? numel : 0;
  result->threshold = scored ? state->threshold : all ? 0 : kNothing;
  result->tie_limit = scored ? state->tie_limit : all ? numel - 1 : -1;
  result->passes = scored ? state->passes : numel > 0;
  result->written = 0;
  sce_params(result->energy, targets, numel, how, result->threshold, result->tie_limit, params);
}

}  // namespace fuseo1
#endif  // FUSEO1_CUDA_SETTLE_CUH_
