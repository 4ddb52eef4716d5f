// SPDX-License-Identifier: Apache-2.0
// fuse's C ABI on the GPU for SCE's parameters (include/fuseo1/cuda.h).
#include "fuse_sce.cuh"
#include "instances.cuh"
#include "launch.cuh"

using namespace fuseo1;

extern "C" const char* fuseo1_cuda_problem(void) {
  int driver = 0, devices = 0, held = 0;
  cudaError_t error = cudaDriverGetVersion(&driver);
  // The runtime would call a missing driver too old.
  if (error == cudaSuccess && driver == 0) return "there is no NVIDIA driver here";
  if (error == cudaSuccess) error = cudaGetDeviceCount(&devices);
  if (error == cudaSuccess && devices == 0) error = cudaErrorNoDevice;
  // A query about a kernel fails if there is no code for the device.
  if (error == cudaSuccess) {
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&held, fuse<1, AllBf16>, kThreads, 0);
  }
  return error == cudaSuccess ? "" : cudaGetErrorString(error);
}

extern "C" int fuseo1_cuda_fuse(const fuseo1_cuda_params* params, const fuseo1_operand* operands, int32_t targets,
                                int64_t offset, int64_t count, void* out, int32_t out_dtype, fuseo1_cuda_survey* result,
                                void* stream) {
  Inputs in = {};
  Output to = {};
  if (!params || !make_inputs(operands, targets, count, &in) || !make_output(out, out_dtype, offset, count, &to)) {
    return FUSEO1_BAD_ARGUMENT;
  }
  if (count == 0) return FUSEO1_OK;
  return with_instance(in, [&](auto instance) {
    using Chosen = decltype(instance);
    return launch("fuse", in, fuse<Chosen::kTargets, typename Chosen::Elements>, blocks_of(in), stream, in, params,
                  offset, to, result);
  });
}
