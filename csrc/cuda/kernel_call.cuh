// SPDX-License-Identifier: Apache-2.0
// A kernel launch as a function call. The host tests have their own version of this file, which emulates CUDA.
#ifndef FUSEO1_CUDA_KERNEL_CALL_CUH_
#define FUSEO1_CUDA_KERNEL_CALL_CUH_

#include <cuda_runtime.h>

namespace fuseo1 {

template <class... Parameters>
cudaError_t launch_kernel(void (*kernel)(Parameters...), unsigned ctas, unsigned threads, cudaStream_t stream,
                          Parameters... arguments) {
  void* addresses[] = {static_cast<void*>(&arguments)...};
  return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(ctas), dim3(threads), addresses, 0, stream);
}

}  // namespace fuseo1
#endif  // FUSEO1_CUDA_KERNEL_CALL_CUH_
