// SPDX-License-Identifier: Apache-2.0
// Kernels with a fault each, to show that the stand-in sees it: faulty NAME SEED prints what the kernel wrote.
#include <cooperative_groups.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <kernel_call.cuh>

extern "C" void emulation_seed(uint64_t seed);

namespace {

constexpr unsigned kCtas = 4, kThreads = 128, kAll = 0xffffffffu;

unsigned thread_of_grid() { return blockIdx.x * kThreads + threadIdx.x; }
__forceinline__ unsigned warp_sum(unsigned value) { return __reduce_add_sync(kAll, value); }

void sound(unsigned* out) {
  __shared__ unsigned values[kThreads];
  values[threadIdx.x] = threadIdx.x;
  __syncthreads();
  const unsigned mine = values[threadIdx.x ^ 64];
  out[thread_of_grid()] = threadIdx.x < 64 ? warp_sum(mine) : warp_sum(mine + 1);
}

void shuffles_apart(unsigned* out) {
  const unsigned lane = threadIdx.x % 32;
  if (lane < 16) {
    out[thread_of_grid()] = __shfl_sync(kAll, lane, 0);
  } else {
    out[thread_of_grid()] = __shfl_sync(kAll, lane, 1);
  }
}

// Both come to the line of warp_sum.
void sums_apart(unsigned* out) {
  unsigned* const to = out + thread_of_grid();
  if (threadIdx.x % 2) {
    *to = warp_sum(1);
  } else {
    *to = warp_sum(2) + 7;
  }
}

void barriers_apart(unsigned* out) {
  if (threadIdx.x < 64) {
    out[thread_of_grid()] = 1;
    __syncthreads();
  } else {
    __syncthreads();
    out[thread_of_grid()] = 2;
  }
}

void one_has_left(unsigned* out) {
  if (threadIdx.x == 3) return;
  out[thread_of_grid()] = __ballot_sync(kAll, 1);
}

void barrier_and_shuffle(unsigned* out) {
  if (threadIdx.x < 32) {
    out[thread_of_grid()] = __shfl_sync(kAll, threadIdx.x, 0);
    __syncthreads();
  } else {
    __syncthreads();
    if (threadIdx.x == 40) out[thread_of_grid()] = __shfl_sync(kAll, threadIdx.x, 0);
  }
}

// What a CTA wrote is not there for the next.
void reads_unwritten(unsigned* out) {
  __shared__ unsigned values[kThreads];
  out[thread_of_grid()] = values[threadIdx.x];
  values[threadIdx.x] = 7;
}

void lacks_barrier(unsigned* out) {
  __shared__ unsigned values[kThreads];
  values[threadIdx.x] = threadIdx.x;
  __syncwarp();
  out[thread_of_grid()] = values[threadIdx.x ^ 64];
}

void lacks_syncwarp(unsigned* out) {
  __shared__ unsigned values[kThreads];
  values[threadIdx.x] = threadIdx.x;
  out[thread_of_grid()] = values[threadIdx.x ^ 1];
}

// Adds to its number that of the next CTA's thread.
void waits_for_ctas(unsigned* out) {
  out[thread_of_grid()] = thread_of_grid();
  cooperative_groups::this_grid().sync();
  const unsigned other = out[(thread_of_grid() + kThreads) % (kCtas * kThreads)];
  cooperative_groups::this_grid().sync();
  out[thread_of_grid()] += other;
}

void lacks_wait(unsigned* out) {
  out[thread_of_grid()] = thread_of_grid();
  const unsigned other = out[(thread_of_grid() + kThreads) % (kCtas * kThreads)];
  cooperative_groups::this_grid().sync();
  out[thread_of_grid()] += other;
}

void one_cta_has_left(unsigned* out) {
  if (blockIdx.x == 2) return;
  cooperative_groups::this_grid().sync();
  out[thread_of_grid()] = 1;
}

void ctas_apart(unsigned* out) {
  if (blockIdx.x == 2) {
    cooperative_groups::this_grid().sync();
  } else {
    cooperative_groups::this_grid().sync();
    out[thread_of_grid()] = 1;
  }
}

// Each thread's turn.
void tells_order(unsigned* out) {
  static unsigned turns;
  out[thread_of_grid()] = turns++;
}

constexpr struct {
  const char* name;
  void (*kernel)(unsigned*);
  bool waits = false;
} kKernels[] = {
    {"sound", sound},
    {"shuffles_apart", shuffles_apart},
    {"sums_apart", sums_apart},
    {"barriers_apart", barriers_apart},
    {"one_has_left", one_has_left},
    {"barrier_and_shuffle", barrier_and_shuffle},
    {"reads_unwritten", reads_unwritten},
    {"lacks_barrier", lacks_barrier},
    {"lacks_syncwarp", lacks_syncwarp},
    {"tells_order", tells_order},
    {"waits_for_ctas", waits_for_ctas, true},
    {"may_not_wait", waits_for_ctas},
    {"lacks_wait", lacks_wait, true},
    {"one_cta_has_left", one_cta_has_left, true},
    {"ctas_apart", ctas_apart, true},
};

}  // namespace

int main(int, char** arguments) {
  emulation_seed(strtoull(arguments[2], nullptr, 10));
  for (const auto& one : kKernels) {
    if (strcmp(one.name, arguments[1])) continue;
    static unsigned out[kCtas * kThreads];
    fuseo1::launch_kernel(one.waits, one.kernel, kCtas, kThreads, cudaStream_t{}, static_cast<unsigned*>(out));
    for (const unsigned number : out) printf("%u\n", number);
    return 0;
  }
  return 2;
}
