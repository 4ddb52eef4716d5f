// SPDX-License-Identifier: Apache-2.0
// Energies of a warp's blocks, summed in shared memory.
#ifndef FUSEO1_CUDA_ENERGY_CUH_
#define FUSEO1_CUDA_ENERGY_CUH_

#include "score_filter.cuh"
#include "state.cuh"

namespace fuseo1 {

// A CTA's sums. A warp adds to them once for 256 elements of all targets.
template <int kN>
struct Sums {
  Halves bins[kN][kExponents];

  __device__ __forceinline__ void clear() {
    for (int i = threadIdx.x; i < kN * kExponents; i += blockDim.x) (&bins[0][0])[i] = {0, 0};
  }
  template <class To>
  __device__ __forceinline__ void flush(To* to) const {
    for (int i = threadIdx.x; i < kN * kExponents; i += blockDim.x) {
      const Count sum = count_of((&bins[0][0])[i]);
      if (sum) atomicAdd(&(*to)[i / kExponents][i % kExponents], sum);
    }
  }
};

// The exponents of a block's peaks, which scale its squares; the same in all lanes.
template <int kN>
struct Peaks {
  uint32_t exponents[kN];
  bool rare;  // some square is too large for the filter of scores, or not finite

  template <class In>
  __device__ __forceinline__ void find(const Block<kN, In>& block, int targets) {
    uint32_t most = 0;
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      if (!is_target<kN>(i, targets)) continue;
      const uint32_t peak = block.peak(i);
      most = max(most, peak);
      exponents[i] = exponent_of(peak);
    }
    rare = most >= kMostFiltered;
  }
};

// Loads a block; elements that take no part become zeros, and are counted in `nonfinite` (unless nullptr). Returns
// whether squares may have to be clamped, after the scores are computed.
template <int kN, class In>
__device__ __forceinline__ bool load_block(const Inputs& in, int64_t at, int count, Count* nonfinite,
                                           Block<kN, In>* block, Peaks<kN>* peaks) {
  block->load(in, at, count);
  peaks->find(*block, in.targets);
  if (peaks->rare) block->sanitize(in, at, count, nonfinite);
  return peaks->rare;
}

template <int kN, class In>
__device__ __forceinline__ void clamp(const Inputs& in, Block<kN, In>* block, Peaks<kN>* peaks) {
  block->clamp_squares();
  peaks->find(*block, in.targets);
}

// A number for each of a lane's elements: 1 if it is selected, else 0. They are numbers because multiplying by them
// takes fewer instructions than a mask of bits.
struct Chosen {
  uint32_t of[kLane];

  explicit __device__ __forceinline__ Chosen(uint32_t mask) {
#pragma unroll
    for (int j = 0; j < kLane; ++j) of[j] = mask >> j & 1u;
  }
  __device__ __forceinline__ uint32_t count() const {
    uint32_t count = 0;
#pragma unroll
    for (int j = 0; j < kLane; ++j) count += of[j];
    return count;
  }
};

// Adds the quanta of the chosen elements to the sums.
template <int kN, class In>
__device__ __forceinline__ void add_energies(const Block<kN, In>& block, const Peaks<kN>& peaks, const Chosen& chosen,
                                             int targets, Sums<kN>* sums) {
  const int lane = threadIdx.x % kWarp;
  const uint32_t bias = chosen.count() * kRintMagicBits;
  uint32_t mine = 0, exponent = 0;
#pragma unroll
  for (int i = 0; i < kN; ++i) {
    if (!is_target<kN>(i, targets)) continue;
    const float scale = __uint_as_float(scale_bits(peaks.exponents[i]));
    uint32_t sum = 0;
#pragma unroll
    for (int j = 0; j < kLane; ++j) {
      const float d = block.d[i][j];
      sum += biased_quantum(__fmul_rn(d, d), scale) * chosen.of[j];
    }
    sum = warp_sum(sum - bias);
    if (lane == i) mine = sum, exponent = peaks.exponents[i];
  }
  if (mine) sums->bins[lane][exponent].add(mine);
}

}  // namespace fuseo1
#endif  // FUSEO1_CUDA_ENERGY_CUH_
