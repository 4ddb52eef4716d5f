// SPDX-License-Identifier: Apache-2.0
// fuse by SCE's parameters (include/fuseo1/fuse.h) on a warp's block.
#ifndef FUSEO1_CUDA_FUSE_SCE_CUH_
#define FUSEO1_CUDA_FUSE_SCE_CUH_

#include "state.cuh"

namespace fuseo1 {

// The memory of a merged tensor.
struct Output {
  void* data;
  int32_t dtype;
};

// Fills *to for `count` elements from flat index `offset` on; false if the arguments are outside the contract.
inline bool make_output(void* out, int32_t dtype, int64_t offset, int64_t count, Output* to) {
  *to = {out, dtype};
  return offset >= 0 && offset % kBlock == 0 && dtype >= FUSEO1_BF16 && dtype <= FUSEO1_FP32 && (out || !count);
}

// a + b, rounded to odd: truncated towards zero, with the last bit set if that lost anything. Rounding that to nearest
// even, to fewer bits, equals rounding the exact sum. NaN stays NaN.
__device__ __forceinline__ float add_to_odd(float a, float b) {
  const bool exact = __fadd_rd(a, b) == __fadd_ru(a, b);
  const uint32_t towards_zero = __float_as_uint(__fadd_rz(a, b));
  return __uint_as_float(exact ? towards_zero : towards_zero | 1u);
}

template <class Out>
__device__ __forceinline__ uint32_t result_of(float base, float delta) {
  const float sum = Out::kNarrow ? add_to_odd(base, delta) : __fadd_rn(base, delta);
  return isnan(sum) ? Out::kNan : Out::round(sum);
}

// The same for an fp64 sum, which is rounded once: to fp32, or to fewer bits through an fp32 rounded to odd.
template <class Out>
__device__ __forceinline__ uint32_t result_of(double base, double delta) {
  const double sum = __dadd_rn(base, delta);
  if (isnan(sum)) return Out::kNan;
  if (!Out::kNarrow) return Out::round(__double2float_rn(sum));
  const float towards_zero = __double2float_rz(sum);
  const bool exact = static_cast<double>(towards_zero) == sum;
  return Out::round(__uint_as_float(__float_as_uint(towards_zero) | (exact ? 0u : 1u)));
}

__device__ __forceinline__ void store16(void* to, const uint4& words) { __stcs(static_cast<uint4*>(to), words); }

// Writes a lane's elements as Out; returns how many are infinite or NaN.
template <class Out, class Real>
__device__ __forceinline__ uint32_t store(const Real* base, const Real* deltas, int64_t at, int count, void* out) {
  using Bits = typename Out::Bits;
  uint32_t results[kLane], nonfinite = 0;
#pragma unroll
  for (int j = 0; j < kLane; ++j) {
    results[j] = result_of<Out>(base[j], deltas[j]);
    nonfinite += j < count && (results[j] & Out::kAbs) >= Out::kInf;
  }
  char* to = static_cast<char*>(out) + at * static_cast<int64_t>(sizeof(Bits));
  if (count == kLane && aligned16(to)) {
    if (sizeof(Bits) == 2) {
      store16(to, {results[0] | results[1] << 16, results[2] | results[3] << 16, results[4] | results[5] << 16,
                   results[6] | results[7] << 16});
    } else {
      store16(to, {results[0], results[1], results[2], results[3]});
      store16(to + 16, {results[4], results[5], results[6], results[7]});
    }
    return nonfinite;
  }
#pragma unroll
  for (int j = 0; j < kLane; ++j) {
    if (j >= count) continue;
    for (int b = 0; b < static_cast<int>(sizeof(Bits)); ++b) {
      to[j * sizeof(Bits) + b] = static_cast<char>(results[j] >> (8 * b));
    }
  }
  return nonfinite;
}

// As store, in the output's dtype.
template <class Real>
__device__ __forceinline__ uint32_t store_to(const Output& out, const Real* base, const Real* deltas, int64_t at,
                                             int count) {
  if (out.dtype == FUSEO1_BF16) return store<ToBf16>(base, deltas, at, count, out.data);
  if (out.dtype == FUSEO1_FP16) return store<ToFp16>(base, deltas, at, count, out.data);
  return store<ToFp32>(base, deltas, at, count, out.data);
}

// The deltas of a lane's elements, which are added to the base.
template <int kN, bool kMasked, class In>
__device__ __forceinline__ void deltas_of(const Block<kN, In>& block, const fuseo1_cuda_params& params,
                                          const Divisor& divisor, int targets, int64_t at, float* deltas) {
  uint32_t scores[kLane];
  if (kMasked) block.score(divisor, targets, scores);
#pragma unroll
  for (int j = 0; j < kLane; ++j) {
    const float s = block.sum(j, targets);
    const bool selected = !kMasked || in_cut(scores[j], at + j, params.threshold, params.tie_limit);
    // With signs flipped where s < 0, "has the elected sign" is "> 0".
    const uint32_t flip = s >= 0.0f ? 0u : 0x80000000u;
    float num = -0.0f, den = 0.0f;  // x + -0.0 is x, for x = -0.0 too
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      if (!is_target<kN>(i, targets)) continue;
      const float d = block.d[i][j];
      if (selected && __uint_as_float(__float_as_uint(d) ^ flip) > 0.0f) {
        num = __fadd_rn(num, __fmul_rn(params.weights[i], d));
        den = __fadd_rn(den, params.weights[i]);
      }
    }
    const float floor = params.floor_divisor;
    const float by = floor == 0.0f ? (den == 0.0f ? 1.0f : den) : (den > floor ? den : floor);
    deltas[j] = isfinite(s) ? __fdiv_rn(num, by) : __uint_as_float(0x7fc00000u);
  }
}

// Fuses every `warps`-th block from `warp` on; element 0 of the operands and the output has flat index `offset`.
// Returns how many of a lane's outputs are infinite or NaN.
template <int kN, bool kMasked, class In>
__device__ __forceinline__ uint32_t fuse_blocks(const Inputs& in, const fuseo1_cuda_params& params, int64_t offset,
                                                const Output& out, int64_t warp, int64_t warps) {
  const Divisor divisor(in.targets);
  uint32_t nonfinite = 0;
  for_blocks(in.numel, warp, warps, [&](int64_t at, int count) {
    Block<kN, In> block;
    block.load(in, at, count);
    float deltas[kLane];
    deltas_of<kN, kMasked>(block, params, divisor, in.targets, offset + at, deltas);
    nonfinite += store_to(out, block.base, deltas, at, count);
  });
  return nonfinite;
}

template <int kN, class In>
__global__ void __launch_bounds__(kThreads, 1) fuse(const __grid_constant__ Inputs in, const fuseo1_cuda_params* given,
                                                    int64_t offset, Output out, fuseo1_cuda_survey* result) {
  const fuseo1_cuda_params params = *given;
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * kWarps;
  const uint32_t nonfinite = params.masked ? fuse_blocks<kN, true, In>(in, params, offset, out, warp, warps)
                                           : fuse_blocks<kN, false, In>(in, params, offset, out, warp, warps);
  if (nonfinite && result) atomicAdd(reinterpret_cast<Count*>(&result->written), static_cast<Count>(nonfinite));
}

}  // namespace fuseo1
#endif  // FUSEO1_CUDA_FUSE_SCE_CUH_
