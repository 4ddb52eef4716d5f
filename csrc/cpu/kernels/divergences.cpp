// SPDX-License-Identifier: Apache-2.0
// The divergence of a target's row from the base's (include/fuseo1/survey.h). Compiled once per instruction set with
// FUSEO1_ISA naming it.
#include "exp_log.h"
#include "nonfinite.h"

namespace fuseo1 {
namespace {

constexpr double kLeastShare = 1e-8;  // added to every probability
constexpr int kLanes64 = 8;           // partial sums of a row, added at the end

// Element j of a row is added to lane j % 8.
struct Lanes {
  Vd of[kLanes64 / kWidth64] = {};

  double sum() const {
    double lane[kLanes64];
    for (int v = 0; v < kLanes64 / kWidth64; ++v) store(lane + v * kWidth64, of[v]);
    for (int half = kLanes64 / 2; half; half /= 2) {
      for (int j = 0; j < half; ++j) lane[j] += lane[j + half];
    }
    return lane[0];
  }
};

FUSEO1_INLINE Vf larger(Vf a, Vf b) { return select(greater(a, b), a, b); }

float max_lane(Vf v) {
  float most = v[0];
  for (int j = 1; j < kWidth; ++j) most = v[j] > most ? v[j] : most;
  return most;
}

void load_wide_input(const fuseo1_operand& op, int64_t at, int64_t count, float* to) {
  switch (op.dtype) {
    case FUSEO1_BF16:
      return load_base<Bf16>(op, at, count, to);
    case FUSEO1_FP16:
      return load_base<Fp16>(op, at, count, to);
    default:
      return load_base<Fp32>(op, at, count, to);
  }
}

// Loads a row of base and target as fp64, padded to whole blocks, with minus infinity where an element takes no part or
// is padding; most[] is the largest of each.
void load_row(const Chunk& chunk, int64_t begin, int64_t end, double* const rows[2], double most[2],
              int64_t* nonfinite) {
  Block block;
  alignas(64) float target[kBlock];
  uint32_t peak;
  Vf largest[2] = {splat(-__FLT_MAX__), splat(-__FLT_MAX__)};
  for (int64_t at = begin; at < end; at += kBlock) {
    const int64_t count = end - at < kBlock ? end - at : kBlock;
    load_block<true>(chunk, at, count, &block, &peak);
    load_wide_input(chunk.operands[1], at, count, target);
    const auto leave_out = [&](int64_t j) { block.base[j] = target[j] = -__builtin_inff(); };
    if (any_nonfinite(1, &peak)) for_each_nonfinite(chunk, at, count, block, nonfinite, leave_out);
    for (int64_t j = count; j < kBlock; ++j) leave_out(j);
    for (int side = 0; side < 2; ++side) {
      const float* from = side ? target : block.base;
      double* to = rows[side] + (at - begin);
      for (int j = 0; j < kBlock; j += kWidth) largest[side] = larger(load<Vf>(from + j), largest[side]);
      for (int j = 0; j < kBlock; j += kWidth64) store(to + j, load_wide(from + j));
    }
  }
  for (int side = 0; side < 2; ++side) most[side] = max_lane(largest[side]);
}

// Turns x into exp(x - most) and returns the sum.
double exponentials(double* row, int64_t padded, double most) {
  Lanes sum;
  for (int64_t j = 0; j < padded; j += kLanes64) {
    for (int v = 0; v < kLanes64 / kWidth64; ++v) {
      double* const at = row + j + v * kWidth64;
      const Vd e = exp_of(load<Vd>(at) - splat(most));
      store(at, e);
      sum.of[v] += e;
    }
  }
  return sum.sum();
}

float divergence_run(const Chunk& chunk, int64_t begin, int64_t end, double* room, int64_t* nonfinite) {
  const int64_t padded = whole_blocks(end - begin);
  double* const rows[2] = {room, room + padded};
  double most[2];
  load_row(chunk, begin, end, rows, most, nonfinite);
  const Vd base_sum = splat(exponentials(rows[0], padded, most[0]));
  const Vd sum = splat(exponentials(rows[1], padded, most[1]));
  Lanes divergence;
  for (int64_t j = 0; j < padded; j += kLanes64) {
    for (int v = 0; v < kLanes64 / kWidth64; ++v) {
      const int64_t at = j + v * kWidth64;
      const Vd p = load<Vd>(rows[1] + at) / sum + splat(kLeastShare);
      const Vd q = load<Vd>(rows[0] + at) / base_sum + splat(kLeastShare);
      divergence.of[v] += p * log_of(p / q);
    }
  }
  // The sum of a row without finite elements is NaN, its divergence 0.
  const double found = divergence.sum();
  return found > 0 ? static_cast<float>(found) : 0.0f;
}

}  // namespace

extern const decltype(Kernels::divergence) FUSEO1_JOIN(divergences_, FUSEO1_ISA) = divergence_run;

}  // namespace fuseo1
