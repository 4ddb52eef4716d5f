// SPDX-License-Identifier: Apache-2.0
// The places of a scan's candidates.
#ifndef FUSEO1_CUDA_SLOTS_CUH_
#define FUSEO1_CUDA_SLOTS_CUH_

#include "energy.cuh"

namespace fuseo1 {

// Keeps the exponents of a block's peaks, for its candidates.
template <int kN>
__device__ __forceinline__ void keep_exponents(const Candidates& to, int targets, const Peaks<kN>& peaks, int64_t at) {
  const int lane = threadIdx.x % kWarp;
  uint32_t exponent = 0;
#pragma unroll
  for (int i = 0; i < kN; ++i) {
    if (lane == i) exponent = peaks.exponents[i];
  }
  if (lane < targets) to.exponents[at / kBlock * targets + lane] = static_cast<uint8_t>(exponent);
}

// A warp's slots for candidates. It takes 32 at a time, so that the counter is no bottleneck.
struct Slots {
  int64_t next = 0, end = 0;
  uint32_t found = 0;

  // Appends one element of each lane that says so; `at` is the element's own.
  __device__ __forceinline__ void append(const Candidates& to, State* state, const Inputs& in, uint32_t score,
                                         bool mine, int64_t at) {
    const int lane = threadIdx.x % kWarp;
    const uint32_t all = __ballot_sync(kAllLanes, mine);
    if (all == 0) return;
    const int wanted = __popc(all), room = static_cast<int>(end - next), rank = __popc(all & ((1u << lane) - 1));
    int64_t fresh = 0;
    if (room < wanted) {
      if (lane == 0) fresh = static_cast<int64_t>(atomicAdd(&state->slots, static_cast<Count>(kWarp)));
      fresh = __shfl_sync(kAllLanes, fresh, 0);
    }
    const int64_t place = rank < room ? next + rank : fresh + rank - room;
    if (mine && place < to.capacity) {
      to.words[place] = static_cast<uint64_t>(score) << to.place_bits | static_cast<uint64_t>(in.numel - 1 - at);
    }
    found += wanted;
    next = room < wanted ? fresh + wanted - room : next + wanted;
    end = room < wanted ? fresh + kWarp : end;
  }

  // Writes 0 to places that stay empty. No candidate is 0, because its score is not.
  __device__ __forceinline__ void finish(const Candidates& to, State* state) {
    const int64_t place = next + threadIdx.x % kWarp;
    if (place < end && place < to.capacity) to.words[place] = 0;
    if (threadIdx.x % kWarp == 0 && found) atomicAdd(&state->candidates, static_cast<Count>(found));
  }
};

}  // namespace fuseo1
#endif  // FUSEO1_CUDA_SLOTS_CUH_
