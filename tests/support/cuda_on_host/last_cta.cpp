// SPDX-License-Identifier: Apache-2.0
// One kernel whose last CTA reads what all have counted, for ThreadSanitizer: last_cta SEEDS.
#include <stdio.h>
#include <stdlib.h>

#include "kernel_call.cuh"
#include "state.cuh"

extern "C" void emulation_seed(uint64_t seed);

namespace {

void count_all(fuseo1::State* state, const uint32_t* scores, int64_t count) {
  __shared__ fuseo1::Histogram histogram;
  histogram.clear();
  __syncthreads();
  fuseo1::for_each(count, [&](int64_t i) { histogram.add(fuseo1::Digit<uint32_t>(0, 0), scores[i]); });
  __syncthreads();
  histogram.flush(state->histograms[0]);
  if (!fuseo1::is_last_cta(state)) return;
  int64_t wanted = count / 2;
  const int digit = fuseo1::reach_from_top(state->histograms[0], &wanted);
  if (threadIdx.x == 0) state->low = static_cast<uint32_t>(digit);
}

}  // namespace

int main(int, char** arguments) {
  constexpr int64_t kScores = 512;
  static uint32_t scores[kScores];
  for (int64_t i = 0; i < kScores; ++i) scores[i] = static_cast<uint32_t>(i << 20);
  const auto seeds = strtoull(arguments[1], nullptr, 10);
  for (uint64_t seed = 1; seed <= seeds; ++seed) {
    emulation_seed(seed);
    static fuseo1::State state;
    state = {};
    fuseo1::launch_kernel(false, count_all, 3u, static_cast<unsigned>(fuseo1::kThreads), cudaStream_t{}, &state,
                          static_cast<const uint32_t*>(scores), int64_t{kScores});
    printf("%u\n", state.low);
  }
  return 0;
}
