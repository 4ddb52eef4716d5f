// SPDX-License-Identifier: Apache-2.0
// Launches that check every error code. Nothing here waits for the device.
#ifndef FUSEO1_CUDA_LAUNCH_CUH_
#define FUSEO1_CUDA_LAUNCH_CUH_

#include <algorithm>
#include <kernel_call.cuh>

#include "state.cuh"

namespace fuseo1 {

// Records a failure for fuseo1_cuda_last_error; returns the status of the C ABI. `what` names the kernel or call.
int check(cudaError_t error, const char* what, int64_t count, int32_t targets, const char* unit = "elements");

// Multiprocessors of the current device.
cudaError_t multiprocessors(int* count);

// Fills an empty *in; false if the operands are outside the contract, or there are fewer than `least` targets.
inline bool make_inputs(const fuseo1_operand* operands, int32_t targets, int64_t numel, Inputs* in, int32_t least = 1) {
  if (!operands || targets < least || targets > FUSEO1_CUDA_MAX_TARGETS || numel < 0) return false;
  in->targets = targets, in->numel = numel;
  for (int i = 0; i <= targets; ++i) {
    const fuseo1_operand& op = in->operands[i] = operands[i];
    if (op.dtype < FUSEO1_BF16 || op.dtype > FUSEO1_FP32 || (numel && !op.data)) return false;
  }
  return true;
}

// Launches `kernel` with as many CTAs of kThreads as the device holds at once, but no more than `warps` of work need.
template <class... Parameters, class... Arguments>
int launch(const char* what, const Inputs& in, void (*kernel)(Parameters...), int64_t warps, void* stream,
           Arguments... arguments) {
  int held = 0, count = 0;
  cudaError_t error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&held, kernel, kThreads, 0);
  if (error == cudaSuccess) error = multiprocessors(&count);
  if (error == cudaSuccess) {
    const int64_t most = std::max<int64_t>(static_cast<int64_t>(held) * count, 1);
    const int64_t wanted = (warps + kWarps - 1) / kWarps;
    const auto ctas = static_cast<unsigned>(std::min(std::max<int64_t>(wanted, 1), most));
    error =
        launch_kernel(kernel, ctas, kThreads, static_cast<cudaStream_t>(stream), static_cast<Parameters>(arguments)...);
  }
  return check(error, what, in.numel, in.targets);
}

// Clears device memory.
inline int clear(void* from, size_t bytes, const Inputs& in, void* stream) {
  return check(cudaMemsetAsync(from, 0, bytes, static_cast<cudaStream_t>(stream)), "memset", in.numel, in.targets);
}

inline int64_t blocks_of(const Inputs& in) { return (in.numel + kBlock - 1) / kBlock; }

}  // namespace fuseo1
#endif  // FUSEO1_CUDA_LAUNCH_CUH_
