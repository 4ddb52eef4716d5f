// SPDX-License-Identifier: Apache-2.0
// Energies of a warp's blocks, summed in shared memory.
#ifndef FUSEO1_CUDA_ENERGY_CUH_
#define FUSEO1_CUDA_ENERGY_CUH_

#include "state.cuh"

namespace fuseo1 {

// A CTA's sums. 64-bit adds in shared memory take some ten cycles; a warp needs one for 256 elements of all targets.
template <int kN>
struct Sums {
  Count bins[kN][kExponents];

  __device__ __forceinline__ void clear() {
    for (int i = threadIdx.x; i < kN * kExponents; i += blockDim.x) (&bins[0][0])[i] = 0;
  }
  template <class To>
  __device__ __forceinline__ void flush(To* to) const {
    for (int i = threadIdx.x; i < kN * kExponents; i += blockDim.x) {
      const Count sum = (&bins[0][0])[i];
      if (sum) atomicAdd(&(*to)[i / kExponents][i % kExponents], sum);
    }
  }
};

// The exponents of a block's peaks, which scale its squares; the same in all lanes.
template <int kN>
struct Peaks {
  uint32_t exponents[kN];
  bool rare;  // some square is not finite

  template <class In>
  __device__ __forceinline__ void find(const Block<kN, In>& block, int targets) {
    rare = false;
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      if (!is_target<kN>(i, targets)) continue;
      const uint32_t peak = block.peak(i);
      rare |= peak >= kInfBits;
      exponents[i] = exponent_of(peak);
    }
  }
};

// Loads a block; elements that take no part become zeros, and are counted in `nonfinite` (unless nullptr). Returns
// whether squares must be clamped, after the scores are computed.
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

// Adds the quanta of the elements in `selected` (a bit each) to the sums.
template <int kN, class In>
__device__ __forceinline__ void add_energies(const Block<kN, In>& block, const Peaks<kN>& peaks, uint32_t selected,
                                             int targets, Sums<kN>* sums) {
  const int lane = threadIdx.x % kWarp;
  uint32_t mine = 0, exponent = 0;
#pragma unroll
  for (int i = 0; i < kN; ++i) {
    if (!is_target<kN>(i, targets)) continue;
    const float scale = __uint_as_float(scale_bits(peaks.exponents[i]));
    uint32_t sum = 0;
#pragma unroll
    for (int j = 0; j < kLane; ++j) {
      const float d = block.d[i][j];
      if (selected >> j & 1u) sum += quantum_of(__fmul_rn(d, d), scale);
    }
    sum = warp_sum(sum);
    if (lane == i) mine = sum, exponent = peaks.exponents[i];
  }
  if (mine) atomicAdd(&sums->bins[lane][exponent], static_cast<Count>(mine));
}

}  // namespace fuseo1
#endif  // FUSEO1_CUDA_ENERGY_CUH_
