// SPDX-License-Identifier: Apache-2.0
// From sums to energies, from energies to weights: SCE's rule on the device (as in methods/sce.py).
#ifndef FUSEO1_CUDA_WEIGHTS_CUH_
#define FUSEO1_CUDA_WEIGHTS_CUH_

#include "histogram.cuh"

namespace fuseo1 {

// mergekit's rules: below this mean square all weights are equal, and no divisor is smaller.
constexpr double kMergekitFloor = 1e-6;

// The exact sums of each exponent, added in fp64 from the smallest on. T: their type, signed or unsigned.
template <class T, class Sum>
__device__ inline double exact_sum(const Sum* sums) {
  double all = 0.0;
  for (int e = 0; e < kExponents; ++e) {
    const Count sum = count_of(sums[e]);
    if (sum) all = __dadd_rn(all, ldexp(static_cast<double>(static_cast<T>(sum)), e - 149));
  }
  return all;
}

template <class Sum>
__device__ inline double energy_of(const Sum* sums) {
  return exact_sum<Count>(sums);
}

__device__ inline void sce_params(const double* energy, int targets, int64_t numel, const fuseo1_cuda_sce& how,
                                  uint32_t threshold, int64_t tie_limit, fuseo1_cuda_params* params) {
  double total = 0.0;
  for (int i = 0; i < targets; ++i) total = __dadd_rn(total, energy[i]);
  bool equal = total == 0.0;
  if (how.mergekit && numel) equal = __ddiv_rn(total, static_cast<double>(numel)) < kMergekitFloor;
  for (int i = 0; i < FUSEO1_CUDA_MAX_TARGETS; ++i) {
    params->weights[i] = i >= targets ? 0.0 : equal ? 1.0 : __ddiv_rn(energy[i], total);
  }
  params->floor_divisor = how.mergekit ? kMergekitFloor : 0.0;
  params->masked = how.mergekit && how.select_topk < 1.0;
  params->threshold = threshold;
  params->tie_limit = tie_limit;
}

}  // namespace fuseo1
#endif  // FUSEO1_CUDA_WEIGHTS_CUH_
