// SPDX-License-Identifier: Apache-2.0
// The stand-in's threads (cuda_runtime.h).
#include <cuda_runtime.h>
#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>

#include <memory>
#include <vector>

namespace emulation {

dim3 thread_index, block_index, block_size, grid_size;

namespace {

constexpr size_t kStackBytes = 256 << 10;
constexpr int kLanes = 32;

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  bool ended;
  int waits_for;  // the round of the barrier, or of the warp's collective, that is to begin
  bool at_barrier;
};

struct Warp {
  uint64_t given[kLanes], taken[kLanes];
  int arrived = 0, round = 0;
};

ucontext_t scheduler;
std::vector<Fiber> fibers;
std::vector<Warp> warps;
int running, alive, at_barrier, barrier_round;
void (*kernel)(void*);
void* argument;

[[noreturn]] void give_up(const char* what) {
  fprintf(stderr, "CUDA on the host: %s (CTA %u, thread %u)\n", what, block_index.x, thread_index.x);
  abort();
}

void pause() {
  Fiber& self = fibers[running];
  swapcontext(&self.context, &scheduler);
}

void begin() {
  kernel(argument);
  fibers[running].ended = true;
  --alive;
  swapcontext(&fibers[running].context, &scheduler);
}

bool can_run(const Fiber& fiber, int thread) {
  if (fiber.ended) return false;
  if (fiber.waits_for < 0) return true;
  return fiber.at_barrier ? fiber.waits_for <= barrier_round : fiber.waits_for <= warps[thread / kLanes].round;
}

}  // namespace

void cta_barrier() {
  Fiber& self = fibers[running];
  self.waits_for = barrier_round + 1, self.at_barrier = true;
  if (++at_barrier == alive) at_barrier = 0, ++barrier_round;
  pause();
  self.waits_for = -1;
}

const uint64_t* exchange(uint64_t mine) {
  Fiber& self = fibers[running];
  Warp& warp = warps[running / kLanes];
  warp.given[running % kLanes] = mine;
  self.waits_for = warp.round + 1, self.at_barrier = false;
  if (++warp.arrived == kLanes) {
    memcpy(warp.taken, warp.given, sizeof warp.given);
    warp.arrived = 0, ++warp.round;
  }
  pause();
  self.waits_for = -1;
  return warp.taken;
}

void run(unsigned ctas, unsigned threads, void (*body)(void*), void* context) {
  kernel = body, argument = context;
  grid_size = {ctas, 1, 1}, block_size = {threads, 1, 1};
  if (fibers.size() < threads) fibers.resize(threads);
  for (unsigned cta = 0; cta < ctas; ++cta) {
    block_index = {cta, 0, 0};
    warps.assign(threads / kLanes, Warp());
    alive = static_cast<int>(threads), at_barrier = barrier_round = 0;
    for (unsigned t = 0; t < threads; ++t) {
      Fiber& fiber = fibers[t];
      if (!fiber.stack) fiber.stack.reset(new char[kStackBytes]);
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = kStackBytes;
      fiber.context.uc_link = nullptr;
      fiber.ended = false, fiber.waits_for = -1;
      makecontext(&fiber.context, begin, 0);
    }
    while (alive > 0) {
      bool progress = false;
      for (unsigned t = 0; t < threads; ++t) {
        if (!can_run(fibers[t], static_cast<int>(t))) continue;
        running = static_cast<int>(t), thread_index = {t, 0, 0};
        progress = true;
        swapcontext(&scheduler, &fibers[t].context);
        // Those that returned no longer count at a barrier.
        if (at_barrier && at_barrier == alive) at_barrier = 0, ++barrier_round;
      }
      if (!progress) give_up("threads wait for one another at different barriers");
    }
  }
}

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
  return store(value, 3);  // multiprocessors: several CTAs, and few
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  emulation::need_context();
  if (emulation::fails()) return cudaErrorLaunchFailure;
  memset(to, value, bytes);
  return cudaSuccess;
}
