// SPDX-License-Identifier: Apache-2.0
// A stand-in for CUDA that runs kernels on the host, in an order that a seed decides. docs/gpu.md says what it sees and
// what it does not.
//
// A CTA is a thread of the host, a CTA's threads are fibers that run until they meet at a barrier or a warp's
// collective, and one fiber of all runs at a time (threads.cpp).
#ifndef FUSEO1_TESTS_CUDA_RUNTIME_H_
#define FUSEO1_TESTS_CUDA_RUNTIME_H_

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <algorithm>

#define __global__
#define __device__
#define __shared__ static thread_local
// Inlined as by nvcc, so that every call of a collective has an address of its own.
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__
#define __grid_constant__
#define __launch_bounds__(...)
#define __CUDA_ARCH_LIST__ 800, 900

struct uint4 {
  unsigned x, y, z, w;
};
struct dim3 {
  unsigned x, y, z;
};

namespace emulation {

// The running thread's coordinates, and what its CTA consists of.
extern dim3 thread_index, block_index, block_size, grid_size;
// A call of a collective in the source.
struct Call {
  const char *what, *file;
  int line;
};
// Blocks until all threads of the CTA that still run have come to this call.
void cta_barrier(const Call& call);
// Blocks until all threads of the grid have; the kernel must have been launched so that it may wait.
void grid_barrier(const Call& call);
// Blocks until all lanes of the warp have come to this call and given a value; returns theirs.
const uint64_t* exchange(const Call& call, unsigned mask, uint64_t mine);
// What a fence, and an atomic operation on `location`, order.
#ifdef FUSEO1_TSAN
void fence();
void touch(const void* location);
#else
inline void fence() {}
inline void touch(const void*) {}
#endif
// Runs a kernel on a grid. `waits`: its CTAs, which are held at the same time, may wait for each other.
void run(bool waits, unsigned ctas, unsigned threads, void (*body)(void*), void* context);
// How many the device has this time: several, so that there are several CTAs, and few.
unsigned multiprocessors();
// Counts a call of the runtime or a launch, and tells whether it is the one that is to fail.
bool fails();
// Counts a call that makes a context where there is none.
void need_context();

}  // namespace emulation

#define threadIdx (::emulation::thread_index)
#define blockIdx (::emulation::block_index)
#define blockDim (::emulation::block_size)
#define gridDim (::emulation::grid_size)

// --- the runtime's API, as far as it is used ---

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorMemoryAllocation = 2,
  cudaErrorNoDevice = 100,
  cudaErrorLaunchFailure = 719,
};
typedef void* cudaStream_t;
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrComputeCapabilityMinor,
};
const char* cudaGetErrorString(cudaError_t);
const char* cudaGetErrorName(cudaError_t);
cudaError_t cudaDriverGetVersion(int*);
cudaError_t cudaGetDevice(int*);
cudaError_t cudaGetDeviceCount(int*);
cudaError_t cudaDeviceGetAttribute(int*, cudaDeviceAttr, int);
cudaError_t cudaMemsetAsync(void*, int, size_t, cudaStream_t);
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* held, Kernel, int, size_t) {
  emulation::need_context();
  if (emulation::fails()) return cudaErrorLaunchFailure;
  *held = 1;
  return cudaSuccess;
}

// --- intrinsics ---

#define FUSEO1_CALL(what) (::emulation::Call{what, __FILE__, __LINE__})
#define __syncthreads() ::emulation::cta_barrier(FUSEO1_CALL("__syncthreads"))
#define __syncwarp() ::emulation::sync_warp(FUSEO1_CALL("__syncwarp"))
#define __ballot_sync(...) ::emulation::ballot(FUSEO1_CALL("__ballot_sync"), __VA_ARGS__)
#define __any_sync(...) (::emulation::ballot(FUSEO1_CALL("__any_sync"), __VA_ARGS__) != 0)
#define __match_any_sync(...) ::emulation::match(FUSEO1_CALL("__match_any_sync"), __VA_ARGS__)
#define __shfl_sync(...) ::emulation::shuffle(FUSEO1_CALL("__shfl_sync"), __VA_ARGS__)
#define __reduce_max_sync(...) ::emulation::most(FUSEO1_CALL("__reduce_max_sync"), __VA_ARGS__)
#define __reduce_add_sync(...) ::emulation::sum(FUSEO1_CALL("__reduce_add_sync"), __VA_ARGS__)

namespace emulation {

void sync_warp(const Call& call);
__forceinline__ unsigned ballot(const Call& call, unsigned mask, int predicate) {
  const uint64_t* all = exchange(call, mask, predicate != 0);
  unsigned bits = 0;
  for (int lane = 0; lane < 32; ++lane) bits |= static_cast<unsigned>(all[lane]) << lane;
  return bits;
}
__forceinline__ unsigned match(const Call& call, unsigned mask, unsigned value) {
  const uint64_t* all = exchange(call, mask, value);
  unsigned bits = 0;
  for (int lane = 0; lane < 32; ++lane) bits |= static_cast<unsigned>(all[lane] == value) << lane;
  return bits;
}
template <class T>
__forceinline__ T shuffle(const Call& call, unsigned mask, T value, int lane) {
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  const uint64_t theirs = exchange(call, mask, bits)[lane];
  T out;
  memcpy(&out, &theirs, sizeof out);
  return out;
}
__forceinline__ unsigned most(const Call& call, unsigned mask, unsigned value) {
  const uint64_t* all = exchange(call, mask, value);
  return static_cast<unsigned>(*std::max_element(all, all + 32));
}
__forceinline__ unsigned sum(const Call& call, unsigned mask, unsigned value) {
  const uint64_t* all = exchange(call, mask, value);
  unsigned sum = 0;
  for (int lane = 0; lane < 32; ++lane) sum += static_cast<unsigned>(all[lane]);
  return sum;
}

}  // namespace emulation

inline void __threadfence() { emulation::fence(); }

template <class T>
T atomicAdd(T* to, T value) {
  emulation::touch(to);
  return __atomic_fetch_add(to, value, __ATOMIC_RELAXED);
}

template <class T>
T atomicOr(T* to, T value) {
  emulation::touch(to);
  return __atomic_fetch_or(to, value, __ATOMIC_RELAXED);
}

// Adds 1; from `most` on begins again at 0.
inline unsigned atomicInc(unsigned* to, unsigned most) {
  emulation::touch(to);
  unsigned before = __atomic_load_n(to, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(to, &before, before >= most ? 0 : before + 1, true, __ATOMIC_RELAXED,
                                      __ATOMIC_RELAXED)) {
  }
  return before;
}

inline uint4 __ldcs(const uint4* from) { return *from; }
inline void __stcs(uint4* to, const uint4& value) { *to = value; }

inline float __uint_as_float(unsigned bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
inline unsigned __float_as_uint(float value) {
  unsigned bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
// Approximate on a GPU, so rounded twice here.
inline float __fdividef(float a, float b) { return a * (1.0f / b); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline long long __double_as_longlong(double value) {
  long long bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline double __longlong_as_double(long long bits) {
  double value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline float __double2float_rn(double a) { return static_cast<float>(a); }
inline float __double2float_rz(double a) {
  const float nearest = static_cast<float>(a);
  return fabs(nearest) > fabs(a) ? nextafterf(nearest, 0.0f) : nearest;
}
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
using std::max;
using std::min;
inline int64_t min(int64_t a, unsigned long long b) {
  return a < static_cast<int64_t>(b) ? a : static_cast<int64_t>(b);
}

#endif  // FUSEO1_TESTS_CUDA_RUNTIME_H_
