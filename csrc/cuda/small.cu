// SPDX-License-Identifier: Apache-2.0
// merge_small's C ABI (include/fuseo1/cuda.h).
#include "instances.cuh"
#include "launch.cuh"
#include "small.cuh"

using namespace fuseo1;

extern "C" int fuseo1_cuda_merge_small(const fuseo1_cuda_tensor* tensors, int64_t count, int32_t targets,
                                       fuseo1_cuda_sce how, fuseo1_cuda_survey* results, void* stream) {
  if (!tensors || !results || count < 0 || count > INT32_MAX || targets < 1 || targets > FUSEO1_CUDA_MAX_TARGETS ||
      !(how.select_topk >= 0.0 && how.select_topk <= 1.0)) {
    return FUSEO1_BAD_ARGUMENT;
  }
  if (count == 0) return FUSEO1_OK;
  Inputs in = {};
  in.targets = targets;
  return with_rare_instance(in, [&](auto instance) {
    constexpr int kN = decltype(instance)::kTargets;
    return check(launch_kernel(false, merge_small<kN>, static_cast<unsigned>(count), kThreads,
                               static_cast<cudaStream_t>(stream), tensors, targets, how, results),
                 "merge_small", count, targets, "tensors");
  });
}
