// SPDX-License-Identifier: Apache-2.0
// The stand-in's runtime (cuda_runtime.h).
#include <cuda_runtime.h>

namespace emulation {
namespace {

int64_t calls, failing;

}  // namespace

bool fails() { return ++calls == failing; }

}  // namespace emulation

// For tests: of the calls from now on the one of this number fails, the first being 1; 0: none.
extern "C" void emulation_fail(int64_t call) { emulation::calls = 0, emulation::failing = call; }
// How many there have been since.
extern "C" int64_t emulation_calls(void) { return emulation::calls; }

namespace {

cudaError_t store(int* to, int value) {
  if (emulation::fails()) return cudaErrorLaunchFailure;
  *to = value;
  return cudaSuccess;
}

}  // namespace

const char* cudaGetErrorString(cudaError_t) { return "the stand-in was told to fail"; }
const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaErrorLaunchFailure ? "cudaErrorLaunchFailure" : "another";
}
cudaError_t cudaDriverGetVersion(int* version) { return store(version, 13000); }
cudaError_t cudaGetDevice(int* device) { return store(device, 0); }
cudaError_t cudaGetDeviceCount(int* count) { return store(count, 1); }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  return store(value, static_cast<int>(emulation::multiprocessors()));
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  if (emulation::fails()) return cudaErrorLaunchFailure;
  memset(to, value, bytes);
  return cudaSuccess;
}
