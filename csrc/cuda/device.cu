// SPDX-License-Identifier: Apache-2.0
// Asks about the GPUs here without making a context on any (include/fuseo1/cuda.h).
#include <cuda_runtime.h>

#include "fuseo1/cuda.h"

namespace {

// The architectures that nvcc compiles for: 800 for sm_80 or compute_80.
constexpr int kArchitectures[] = {__CUDA_ARCH_LIST__};

// Machine code runs on later GPUs of the same major version.
bool has_code(int major, int minor) {
  for (const int architecture : kArchitectures) {
    if (architecture / 100 == major && architecture / 10 % 10 <= minor) return true;
  }
  return false;
}

}  // namespace

extern "C" int fuseo1_cuda_has_code(void) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess) return 0;
  for (int device = 0; device < devices; ++device) {
    int major = 0, minor = 0;
    if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess ||
        !has_code(major, minor)) {
      return 0;
    }
  }
  return devices > 0;
}
