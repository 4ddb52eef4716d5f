// SPDX-License-Identifier: Apache-2.0
// The survey of inner products (include/fuseo1/survey.h): sums of v_i * v_j for all pairs of few vectors.
#ifndef FUSEO1_CUDA_GRAM_CUH_
#define FUSEO1_CUDA_GRAM_CUH_

#include "norms.cuh"

namespace fuseo1 {

// The targets that a launch takes, as operand numbers: from 1.
struct GramTargets {
  int32_t of[kGramTargets];
};

// A lane's part of the vectors of a block: d_1..d_N of these targets, or the base and these targets themselves.
template <int kN, bool kOfInputs>
struct Vectors {
  static constexpr int kCount = kN + kOfInputs, kPairs = kCount * (kCount + 1) / 2;
  float v[kCount][kLane];

  // Returns, the same in all lanes, whether any input or vector is not finite or has no finite square.
  template <class In>
  __device__ __forceinline__ bool load(const Inputs& in, const GramTargets& targets, int64_t at, int count) {
    typename In::Raw raw[kN];
    const typename In::Raw raw_base = In::load(in.operands[0], at, count);
#pragma unroll
    for (int i = 0; i < kN; ++i) raw[i] = In::load(in.operands[targets.of[i]], at, count);
    uint32_t most = 0;
#pragma unroll
    for (int j = 0; j < kLane; ++j) {
      const float base = In::widen(raw_base, in.operands[0].dtype, j);
      if (kOfInputs) v[0][j] = base, most = max(most, magnitude_bits(base));
#pragma unroll
      for (int i = 0; i < kN; ++i) {
        const float x = In::widen(raw[i], in.operands[targets.of[i]].dtype, j), d = __fsub_rn(x, base);
        v[i + kOfInputs][j] = kOfInputs ? x : d;
        most = max(most, max(magnitude_bits(x), magnitude_bits(d)));
      }
    }
    return warp_max(most) > kMaxSquarableBits;
  }

  // Sets the elements `excluded` to 0, and clamps the others so that their squares are finite.
  __device__ __forceinline__ void clamp(uint32_t excluded) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
#pragma unroll
      for (int j = 0; j < kLane; ++j) v[i][j] = excluded >> j & 1u ? 0.0f : clamp_square(v[i][j]);
    }
  }
};

// The sum over a warp of numbers of at most 2^26 each. Only 32 times 2^26 sums to 2^31, which would look like -2^31.
__device__ __forceinline__ int64_t warp_sum_signed(int32_t mine) {
  const uint32_t sum = warp_sum(static_cast<uint32_t>(mine));
  return sum == 0x80000000u && mine > 0 ? int64_t{1} << 31 : static_cast<int32_t>(sum);
}

// Adds the products of all pairs: (0, 0), (0, 1), ... (1, 1), ... Counts elements that are not finite, unless they are
// `counted` already.
template <int kN, class In, bool kOfInputs>
__global__ void __launch_bounds__(kThreads, 1)
    add_gram(const __grid_constant__ Inputs in, GramTargets targets, int32_t counted, SumsWork* work) {
  using V = Vectors<kN, kOfInputs>;
  __shared__ Sums<V::kPairs> sums;
  sums.clear();
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  // s also depends on targets that this launch does not take.
  const bool doubtful = counted && any_nonfinite(work->nonfinite);
  for_each_block(in.numel, [&](int64_t at, int count) {
    V vectors;
    if (vectors.template load<In>(in, targets, at, count) || doubtful) {
      vectors.clamp(excluded_mask(in, at, count, counted ? nullptr : work->nonfinite));
    }
    int64_t mine = 0;
    uint32_t exponent = 0;
    int pair = 0;
#pragma unroll
    for (int a = 0; a < V::kCount; ++a) {
#pragma unroll
      for (int b = a; b < V::kCount; ++b, ++pair) {
        float products[kLane];
        uint32_t peak = 0;
#pragma unroll
        for (int j = 0; j < kLane; ++j) {
          products[j] = __fmul_rn(vectors.v[a][j], vectors.v[b][j]);
          peak = max(peak, magnitude_bits(products[j]));
        }
        const uint32_t of_block = exponent_of(warp_max(peak));
        const float scale = __uint_as_float(scale_bits(of_block));
        int32_t sum = 0;
#pragma unroll
        for (int j = 0; j < kLane; ++j) {
          const auto quantum = static_cast<int32_t>(quantum_of(fabsf(products[j]), scale));
          sum += products[j] < 0.0f ? -quantum : quantum;
        }
        const int64_t all = warp_sum_signed(sum);
        if (lane == pair) mine = all, exponent = of_block;
      }
    }
    if (mine) sums.bins[lane][exponent].add(static_cast<Count>(mine));
  });
  __syncthreads();
  sums.flush(&work->gram);
}

// One CTA: writes the matrix's entries for `count` targets.
__global__ void __launch_bounds__(kThreads, 1)
    settle_gram(const SumsWork* work, GramTargets targets, int32_t count, int32_t all, int32_t of_inputs,
                int32_t passes, fuseo1_cuda_sums* result) {
  const int size = all + of_inputs;
  const auto row = [&](int vector) {
    return of_inputs ? (vector ? targets.of[vector - 1] : 0) : targets.of[vector] - 1;
  };
  int pair = 0;
  for (int a = 0; a < count + of_inputs; ++a) {
    for (int b = a; b < count + of_inputs; ++b, ++pair) {
      if (pair != static_cast<int>(threadIdx.x)) continue;
      const double sum = exact_sum<int64_t>(work->gram[pair]);
      result->sums[row(a) * size + row(b)] = result->sums[row(b) * size + row(a)] = sum;
    }
  }
  settle_rest(work, passes, result);
}

}  // namespace fuseo1
#endif  // FUSEO1_CUDA_GRAM_CUH_
