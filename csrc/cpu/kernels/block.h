// SPDX-License-Identifier: Apache-2.0
// A block of 256 elements in the L1 cache: the base widened to fp32 and the task vectors d_i = x_i - b.
// Included only by the per-ISA sources; internal linkage throughout (see simd.h).
#ifndef FUSEO1_CPU_KERNELS_BLOCK_H_
#define FUSEO1_CPU_KERNELS_BLOCK_H_

#include <type_traits>

#include "simd.h"
#include "table.h"

namespace fuseo1 {
namespace {

// The distance from the current block to the one that is prefetched. On AMD EPYC (Zen 5), 2 cores, 4 streams of bf16,
// 1 to 4 KiB measured the same (bench/results/).
constexpr int64_t kPrefetchBytes = 2048;

struct Block {
  alignas(64) float base[kBlock];
  alignas(64) float d[FUSEO1_MAX_TARGETS][kBlock];
};

template <class T>
FUSEO1_INLINE const typename T::Bits* elements(const fuseo1_operand& op, int64_t at) {
  return static_cast<const typename T::Bits*>(op.data) + at;
}

// The block's elements or, at a tensor's tail, a copy padded with zeros, which add nothing to any sum.
template <class T>
FUSEO1_INLINE const typename T::Bits* whole_block(const fuseo1_operand& op, int64_t at, int64_t count,
                                                  typename T::Bits* padded) {
  const typename T::Bits* p = elements<T>(op, at);
  if (count == kBlock) {
    const char* next = reinterpret_cast<const char*>(p) + kPrefetchBytes;
    for (unsigned b = 0; b < kBlock * sizeof(*p); b += 64) __builtin_prefetch(next + b);
    return p;
  }
  memset(padded, 0, kBlock * sizeof(*p));
  memcpy(padded, p, static_cast<size_t>(count) * sizeof(*p));
  return padded;
}

template <class T>
void load_base(const fuseo1_operand& op, int64_t at, int64_t count, float* base) {
  alignas(64) typename T::Bits padded[kBlock];
  const typename T::Bits* p = whole_block<T>(op, at, count, padded);
  for (int j = 0; j < kBlock; j += kWidth) store(base + j, T::widen(p + j));
}

// With kPeak, returns the largest d*d as bits; those of infinity and NaN exceed those of every finite number.
template <class T, bool kPeak>
uint32_t load_difference(const fuseo1_operand& op, int64_t at, int64_t count, const float* base, float* d) {
  alignas(64) typename T::Bits padded[kBlock];
  const typename T::Bits* p = whole_block<T>(op, at, count, padded);
  Vu peak{};
  for (int j = 0; j < kBlock; j += kWidth) {
    const Vf x = T::widen(p + j) - load<Vf>(base + j);
    store(d + j, x);
    if (kPeak) peak = max(peak, bits(x * x));
  }
  return kPeak ? max_lane(peak) : 0;
}

// Loads the block at element `at` of the chunk; with kPeaks, peaks[i] is the largest d_i*d_i of target i.
template <bool kPeaks>
void load_block(const Chunk& chunk, int64_t at, int64_t count, Block* block, uint32_t* peaks) {
  const fuseo1_operand& b = chunk.operands[0];
  switch (b.dtype) {
    case FUSEO1_BF16:
      load_base<Bf16>(b, at, count, block->base);
      break;
    case FUSEO1_FP16:
      load_base<Fp16>(b, at, count, block->base);
      break;
    default:
      load_base<Fp32>(b, at, count, block->base);
  }
  for (int i = 0; i < chunk.targets; ++i) {
    const fuseo1_operand& x = chunk.operands[i + 1];
    uint32_t peak;
    switch (x.dtype) {
      case FUSEO1_BF16:
        peak = load_difference<Bf16, kPeaks>(x, at, count, block->base, block->d[i]);
        break;
      case FUSEO1_FP16:
        peak = load_difference<Fp16, kPeaks>(x, at, count, block->base, block->d[i]);
        break;
      default:
        peak = load_difference<Fp32, kPeaks>(x, at, count, block->base, block->d[i]);
    }
    if (kPeaks) peaks[i] = peak;
  }
}

// s = d_1 + ... + d_N of one vector of the block. kTargets 0: `targets` of them.
template <int kTargets>
FUSEO1_INLINE Vf sum_of(const Block& block, int targets, int j) {
  const int n = kTargets ? kTargets : targets;
  Vf s = load<Vf>(block.d[0] + j);
  for (int i = 1; i < n; ++i) s += load<Vf>(block.d[i] + j);
  return s;
}

// The score: the task vectors' variance.
template <int kTargets>
FUSEO1_INLINE Vf variance_of(const Block& block, int targets, int j) {
  const int n = kTargets ? kTargets : targets;
  const Vf count = splat(static_cast<float>(n));
  const Vf mean = sum_of<kTargets>(block, targets, j) / count;
  Vf away = load<Vf>(block.d[0] + j) - mean;
  Vf v = away * away;
  for (int i = 1; i < n; ++i) {
    away = load<Vf>(block.d[i] + j) - mean;
    v += away * away;
  }
  return v / count;
}

FUSEO1_INLINE Mask is_finite(Vf v) { return greater((Vi)splat(kInfBits), (Vi)(bits(v) & 0x7fffffffu)); }

// Evaluates `call` with kTargets the number of targets, if that is small enough to unroll loops over it, else with 0.
#define FUSEO1_UNROLL_TARGETS(targets, call) \
  switch (targets) {                         \
    case 1: {                                \
      constexpr int kTargets = 1;            \
      call;                                  \
      break;                                 \
    }                                        \
    case 2: {                                \
      constexpr int kTargets = 2;            \
      call;                                  \
      break;                                 \
    }                                        \
    case 3: {                                \
      constexpr int kTargets = 3;            \
      call;                                  \
      break;                                 \
    }                                        \
    case 4: {                                \
      constexpr int kTargets = 4;            \
      call;                                  \
      break;                                 \
    }                                        \
    default: {                               \
      constexpr int kTargets = 0;            \
      call;                                  \
    }                                        \
  }

// Calls f with the election as a constant.
template <class F>
auto with_election(int32_t elect, const F& f) {
  switch (elect) {
    case FUSEO1_ELECT_SUM:
      return f(std::integral_constant<int, FUSEO1_ELECT_SUM>());
    case FUSEO1_ELECT_WEIGHTED:
      return f(std::integral_constant<int, FUSEO1_ELECT_WEIGHTED>());
    case FUSEO1_ELECT_COUNT:
      return f(std::integral_constant<int, FUSEO1_ELECT_COUNT>());
    default:
      return f(std::integral_constant<int, FUSEO1_ELECT_NONE>());
  }
}

}  // namespace
}  // namespace fuseo1
#endif  // FUSEO1_CPU_KERNELS_BLOCK_H_
