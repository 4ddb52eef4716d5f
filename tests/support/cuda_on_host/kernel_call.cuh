// SPDX-License-Identifier: Apache-2.0
// csrc/cuda/kernel_call.cuh on the host.
#ifndef FUSEO1_CUDA_KERNEL_CALL_CUH_
#define FUSEO1_CUDA_KERNEL_CALL_CUH_

#include <cuda_runtime.h>

#include <tuple>

namespace fuseo1 {

template <class... Parameters>
cudaError_t launch_kernel(bool waits, void (*kernel)(Parameters...), unsigned ctas, unsigned threads, cudaStream_t,
                          Parameters... arguments) {
  if (emulation::fails()) return cudaErrorLaunchFailure;
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> arguments;
  } call = {kernel, {arguments...}};
  emulation::run(
      waits, ctas, threads,
      [](void* to) { std::apply(static_cast<Call*>(to)->kernel, static_cast<Call*>(to)->arguments); }, &call);
  return cudaSuccess;
}

}  // namespace fuseo1
#endif  // FUSEO1_CUDA_KERNEL_CALL_CUH_
