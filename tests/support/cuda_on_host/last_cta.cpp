// SPDX-License-Identifier: Apache-2.0
// One kernel whose last CTA reads what all have counted, for ThreadSanitizer: last_cta SEEDS.
#include <stdio.h>
#include <stdlib.h>

#include "kernel_call.cuh"
#include "threshold.cuh"

extern "C" void emulation_seed(uint64_t seed);

int main(int, char** arguments) {
  constexpr int64_t kScores = 512;
  static uint32_t sample[kScores];
  for (int64_t i = 0; i < kScores; ++i) sample[i] = static_cast<uint32_t>(i * 1000);
  const auto seeds = strtoull(arguments[1], nullptr, 10);
  for (uint64_t seed = 1; seed <= seeds; ++seed) {
    emulation_seed(seed);
    static fuseo1::State state;
    state.rank[0] = 100, state.rank[1] = 300;
    fuseo1::launch_kernel(fuseo1::refine_bracket, 3u, static_cast<unsigned>(fuseo1::kThreads), cudaStream_t{}, &state,
                          static_cast<const uint32_t*>(sample), int64_t{kScores});
    printf("%u %u\n", state.low, state.high);
  }
  return 0;
}
