// SPDX-License-Identifier: Apache-2.0
// The workspace of surveys that search for a threshold, and the steps of the search.
#ifndef FUSEO1_CUDA_STEPS_CUH_
#define FUSEO1_CUDA_STEPS_CUH_

#include "bracket.cuh"
#include "exact.cuh"
#include "launch.cuh"

namespace fuseo1 {

constexpr int64_t kWorkspaceFloor = 2 << 20;
constexpr int64_t kAlign = 256;
// One in so many elements is sampled, at most kMostSampled; of small tensors one in 32, up to kSampledFloor. A sample
// of 2^20 gives a bracket of about 0.4 % of the elements: a larger one costs more than it saves.
constexpr int64_t kElementsPerSampled = 128;
constexpr int64_t kSampledFloor = 65536, kMostSampled = 1 << 20;
// The most workspace, in percent of the inputs' bytes as bf16.
constexpr int64_t kPercent = 3;

inline int64_t round_up(int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

inline int64_t runs_of(int64_t numel) {
  const int64_t wanted = std::min(std::max(kSampledFloor, numel / kElementsPerSampled), kMostSampled);
  return std::max<int64_t>(std::min(wanted, numel / 32) / kLane, 0);
}

// The bits for the place of every element, in whole digits; more than kMostPlaceBits if those do not suffice.
inline int place_bits_of(int64_t numel) {
  int bits = kDigitBits;
  while (bits <= kMostPlaceBits && numel > int64_t{1} << bits) bits += kDigitBits;
  return bits;
}

// The parts of a workspace; `state` first.
struct Workspace {
  State* state;
  uint32_t* sample;
  uint32_t* stretches;
  Candidates candidates;
  int64_t bytes;

  // Lays them out from `start` (nullptr: only computes `bytes`).
  Workspace(void* start, int32_t targets, int64_t numel) {
    bytes = 0;
    char* const begin = static_cast<char*>(start);
    const auto take = [&](int64_t size) {
      char* const part = begin ? begin + bytes : nullptr;
      bytes += round_up(size);
      return static_cast<void*>(part);
    };
    state = static_cast<State*>(take(sizeof(State)));
    const int64_t before = bytes;
    stretches = static_cast<uint32_t*>(take((numel + kStretch - 1) / kStretch * 4));
    candidates.exponents = static_cast<uint8_t*>(take((numel + kBlock - 1) / kBlock * targets));
    const int64_t share = 2 * (targets + 1) * numel / 100 * kPercent - (bytes - before);
    candidates.place_bits = place_bits_of(numel);
    // If words have no room for the places of so many elements, the exact path finds the threshold.
    candidates.capacity =
        candidates.place_bits > kMostPlaceBits ? 0 : std::max(kWorkspaceFloor, share) / 8 / kWarp * kWarp;
    // The sample is no longer needed when there are candidates.
    candidates.words = static_cast<uint64_t*>(take(std::max(candidates.capacity * 8, runs_of(numel) * kLane * 4)));
    sample = reinterpret_cast<uint32_t*>(candidates.words);
  }
};

inline int64_t warps_of_candidates(const Workspace& work) { return (work.candidates.capacity / kWarp + 31) / 32; }

// Places the bracket around the score that a `share` of the elements reach.
template <int kN, class Source>
int launch_bracket(const Source& in, const Workspace& work, double share, void* stream) {
  const int64_t runs = runs_of(in.numel), warps = (runs + kWarp - 1) / kWarp;
  return launch_waiting("find_bracket", in, find_bracket<kN, Source>, warps, stream, in, work.state, work.sample, runs,
                        share);
}

template <int kN, bool kEnergies, class Source>
int launch_exactly(const Source& in, const Workspace& work, void* stream) {
  return launch_waiting("find_exactly", in, find_exactly<kN, kEnergies, Source>, blocks_of(in), stream, in, work.state,
                        work.stretches);
}

}  // namespace fuseo1
#endif  // FUSEO1_CUDA_STEPS_CUH_
