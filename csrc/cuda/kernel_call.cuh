// SPDX-License-Identifier: Apache-2.0
// A kernel launch as a function call. The host tests have their own version of this file, which emulates CUDA.
#ifndef FUSEO1_CUDA_KERNEL_CALL_CUH_
#define FUSEO1_CUDA_KERNEL_CALL_CUH_

#include <cuda_runtime.h>

namespace fuseo1 {

// `waits`: its CTAs wait for each other, so the device must hold all of them at once.
template <class... Parameters>
cudaError_t launch_kernel(bool waits, void (*kernel)(Parameters...), unsigned ctas, unsigned threads,
                          cudaStream_t stream, Parameters... arguments) {
  void* addresses[] = {static_cast<void*>(&arguments)...};
  const auto* const function = reinterpret_cast<const void*>(kernel);
  return waits ? cudaLaunchCooperativeKernel(function, dim3(ctas), dim3(threads), addresses, 0, stream)
               : cudaLaunchKernel(function, dim3(ctas), dim3(threads), addresses, 0, stream);
}

}  // namespace fuseo1
#endif  // FUSEO1_CUDA_KERNEL_CALL_CUH_
