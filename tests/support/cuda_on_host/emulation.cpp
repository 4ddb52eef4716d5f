// SPDX-License-Identifier: Apache-2.0
// The stand-in's runtime (cuda_runtime.h).
#include <cuda_runtime.h>

namespace emulation {
namespace {

int64_t calls, failing, contexts;
int capability = 90;

}  // namespace

bool fails() { return ++calls == failing; }

void need_context() { ++contexts; }

}  // namespace emulation

// For tests: of the calls from now on the one of this number fails, the first being 1; 0: none.
extern "C" void emulation_fail(int64_t call) { emulation::calls = 0, emulation::failing = call; }
// How many there have been since.
extern "C" int64_t emulation_calls(void) { return emulation::calls; }
// How many have ever needed a context.
extern "C" int64_t emulation_contexts(void) { return emulation::contexts; }
// Sets the GPU's compute capability, times 10.
extern "C" void emulation_capability(int capability) { emulation::capability = capability; }

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
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  if (attribute == cudaDevAttrComputeCapabilityMajor) return store(value, emulation::capability / 10);
  if (attribute == cudaDevAttrComputeCapabilityMinor) return store(value, emulation::capability % 10);
  return store(value, static_cast<int>(emulation::multiprocessors()));
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  emulation::need_context();
  if (emulation::fails()) return cudaErrorLaunchFailure;
  memset(to, value, bytes);
  return cudaSuccess;
}
