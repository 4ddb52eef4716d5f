// SPDX-License-Identifier: Apache-2.0
// Elements that take no part in a survey: those whose s = d_1 + ... + d_N is not finite.
// Included only by the per-ISA sources; internal linkage throughout (see simd.h).
#ifndef FUSEO1_CPU_KERNELS_NONFINITE_H_
#define FUSEO1_CPU_KERNELS_NONFINITE_H_

#include "block.h"

namespace fuseo1 {
namespace {

float scalar(const fuseo1_operand& op, int64_t at) {
  alignas(64) uint32_t lane[kWidth] = {};
  memcpy(lane, static_cast<const char*>(op.data) + at * element_size(op.dtype), element_size(op.dtype));
  switch (op.dtype) {
    case FUSEO1_BF16:
      return Bf16::widen(reinterpret_cast<const uint16_t*>(lane))[0];
    case FUSEO1_FP16:
      return Fp16::widen(reinterpret_cast<const uint16_t*>(lane))[0];
    default:
      return Fp32::widen(lane)[0];
  }
}

bool finite(float x) { return __builtin_isfinite(x); }

// For a block with a d_i*d_i that is not finite: calls exclude(j) for the elements whose s is not finite, and counts
// them by input that is not finite, or as overflows.
template <class Exclude>
__attribute__((noinline)) void for_each_nonfinite(const Chunk& chunk, int64_t at, int64_t count, const Block& block,
                                                  int64_t* nonfinite, const Exclude& exclude) {
  const int n = chunk.targets;
  for (int64_t j = 0; j < count; ++j) {
    float s = block.d[0][j];
    for (int i = 1; i < n; ++i) s += block.d[i][j];
    if (finite(s)) continue;
    bool inputs_finite = true;
    for (int i = 0; i <= n; ++i) {
      const bool bad = !finite(scalar(chunk.operands[i], at + j));
      nonfinite[i] += bad;
      inputs_finite &= !bad;
    }
    nonfinite[n + 1] += inputs_finite;
    exclude(j);
  }
}

// Sets these elements of such a block to 0.
void sanitize(const Chunk& chunk, int64_t at, int64_t count, Block* block, int64_t* nonfinite) {
  for_each_nonfinite(chunk, at, count, *block, nonfinite, [&](int64_t j) {
    for (int i = 0; i < chunk.targets; ++i) block->d[i][j] = 0.0f;
  });
}

// Whether a d_i*d_i is not finite, by load_block's peaks. If all are finite, so is every s.
bool any_nonfinite(int targets, const uint32_t* peaks) {
  uint32_t most = 0;
  for (int i = 0; i < targets; ++i) most = peaks[i] > most ? peaks[i] : most;
  return most >= kInfBits;
}

// Loads a block, with 0 for its elements that take no part.
inline void load_finite(const Chunk& chunk, int64_t at, int64_t count, Block* block, int64_t* nonfinite) {
  uint32_t peaks[FUSEO1_MAX_TARGETS];
  load_block<true>(chunk, at, count, block, peaks);
  if (any_nonfinite(chunk.targets, peaks)) sanitize(chunk, at, count, block, nonfinite);
}

// The nearest number whose square is finite.
FUSEO1_INLINE Vf squarable(Vf x) {
  const Vf most = from_bits(splat(kMaxSquarableBits));
  x = select(greater(x, most), most, x);
  return select(greater(-most, x), -most, x);
}

}  // namespace
}  // namespace fuseo1
#endif  // FUSEO1_CPU_KERNELS_NONFINITE_H_
