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

// How many CTAs of kThreads of a kernel one of them holds at once. Each kernel is asked about once a device: the
// question takes longer than a launch.
cudaError_t held_by_multiprocessor(const void* kernel, int* held);

// Fills an empty *in; false if the operands are outside the contract, or there are fewer than `least` targets.
inline bool make_inputs(const fuseo1_operand* operands, int32_t targets, int64_t numel, Inputs* in, int32_t least = 1) {
  if (!operands || targets < least || targets > FUSEO1_CUDA_MAX_TARGETS || numel < 0) return false;
  in->targets = targets, in->numel = numel, in->aligned = 1;
  for (int i = 0; i <= targets; ++i) {
    const fuseo1_operand& op = in->operands[i] = operands[i];
    if (op.dtype < FUSEO1_BF16 || op.dtype > FUSEO1_FP32 || (numel && !op.data)) return false;
    in->aligned &= aligned16(op.data);
  }
  return true;
}

// Sets *ctas to as many CTAs of kThreads as the device holds at once, but no more than `warps` of work need.
inline cudaError_t set_ctas(const void* kernel, int64_t warps, unsigned* ctas) {
  int held = 0, count = 0;
  cudaError_t error = held_by_multiprocessor(kernel, &held);
  if (error == cudaSuccess) error = multiprocessors(&count);
  const int64_t most = std::max<int64_t>(static_cast<int64_t>(held) * count, 1);
  *ctas = static_cast<unsigned>(std::min(std::max<int64_t>((warps + kWarps - 1) / kWarps, 1), most));
  return error;
}

// Launches `kernel` for so many warps of work; `waits`: it calls wait_for_grid.
template <class... Parameters, class... Arguments>
int launch_either(bool waits, const char* what, const Inputs& in, void (*kernel)(Parameters...), int64_t warps,
                  void* stream, Arguments... arguments) {
  unsigned ctas = 0;
  cudaError_t error = set_ctas(reinterpret_cast<const void*>(kernel), warps, &ctas);
  if (error == cudaSuccess) {
    error = launch_kernel(waits, kernel, ctas, kThreads, static_cast<cudaStream_t>(stream),
                          static_cast<Parameters>(arguments)...);
  }
  return check(error, what, in.numel, in.targets);
}

template <class... Parameters, class... Arguments>
int launch(const char* what, const Inputs& in, void (*kernel)(Parameters...), int64_t warps, void* stream,
           Arguments... arguments) {
  return launch_either(false, what, in, kernel, warps, stream, arguments...);
}

template <class... Parameters, class... Arguments>
int launch_waiting(const char* what, const Inputs& in, void (*kernel)(Parameters...), int64_t warps, void* stream,
                   Arguments... arguments) {
  return launch_either(true, what, in, kernel, warps, stream, arguments...);
}

// Clears device memory.
inline int clear(void* from, size_t bytes, const Inputs& in, void* stream) {
  return check(cudaMemsetAsync(from, 0, bytes, static_cast<cudaStream_t>(stream)), "memset", in.numel, in.targets);
}

inline int64_t blocks_of(const Inputs& in) { return (in.numel + kBlock - 1) / kBlock; }

}  // namespace fuseo1
#endif  // FUSEO1_CUDA_LAUNCH_CUH_
