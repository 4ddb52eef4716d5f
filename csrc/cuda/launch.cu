// SPDX-License-Identifier: Apache-2.0
// Properties of the current device that launches depend on, and the last error.
#include <stdio.h>

#include <map>
#include <mutex>
#include <utility>

#include "launch.cuh"

namespace fuseo1 {
namespace {

thread_local char last_error[256];

}  // namespace

int check(cudaError_t error, const char* what, int64_t count, int32_t targets, const char* unit) {
  if (error == cudaSuccess) return FUSEO1_OK;
  snprintf(last_error, sizeof last_error, "%s on %lld %s, %d targets: %s (%s)", what, static_cast<long long>(count),
           unit, targets, cudaGetErrorString(error), cudaGetErrorName(error));
  return error == cudaErrorMemoryAllocation ? FUSEO1_OUT_OF_MEMORY : FUSEO1_DEVICE_FAILED;
}

cudaError_t multiprocessors(int* count) {
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  return error == cudaSuccess ? cudaDeviceGetAttribute(count, cudaDevAttrMultiProcessorCount, device) : error;
}

cudaError_t held_by_multiprocessor(const void* kernel, int* held) {
  static std::mutex one_at_a_time;
  static std::map<std::pair<const void*, int>, int> known;
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  const auto found = known.find({kernel, device});
  if (found != known.end()) return *held = found->second, cudaSuccess;
  error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(held, kernel, kThreads, 0);
  if (error == cudaSuccess) known[{kernel, device}] = *held;
  return error;
}

}  // namespace fuseo1

extern "C" const char* fuseo1_cuda_last_error(void) { return fuseo1::last_error; }
