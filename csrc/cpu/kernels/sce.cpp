// SPDX-License-Identifier: Apache-2.0
// SCE's survey (include/fuseo1/survey.h), block by block. Compiled once per instruction set with FUSEO1_ISA naming it.
#include "nonfinite.h"
#include "quanta.h"

namespace fuseo1 {
namespace {

// Clamps every d_i so that its square is finite, and updates the peaks. Call it after the scores are computed.
__attribute__((noinline)) void clamp_squares(int targets, Block* block, uint32_t* peaks) {
  for (int i = 0; i < targets; ++i) {
    Vu peak{};
    for (int j = 0; j < kBlock; j += kWidth) {
      const Vf x = squarable(load<Vf>(block->d[i] + j));
      store(block->d[i] + j, x);
      peak = max(peak, bits(x * x));
    }
    peaks[i] = max_lane(peak);
  }
}

// t = rint(d*d * scale), plus kRintMagicBits, which are subtracted from a block's sum at once.
FUSEO1_INLINE Vu quantize(Vf d, Vf scale) { return bits(d * d * scale + splat(kRintMagic)); }

void energy_run(const Chunk& chunk, int64_t begin, int64_t end, Totals* totals) {
  Block block;
  uint32_t peaks[FUSEO1_MAX_TARGETS];
  for (int64_t at = begin; at < end; at += kBlock) {
    const int64_t count = end - at < kBlock ? end - at : kBlock;
    load_block<true>(chunk, at, count, &block, peaks);
    if (any_nonfinite(chunk.targets, peaks)) {
      sanitize(chunk, at, count, &block, totals->nonfinite);
      clamp_squares(chunk.targets, &block, peaks);
    }
    for (int i = 0; i < chunk.targets; ++i) {
      const uint32_t exponent = exponent_of(peaks[i]);
      const Vf scale = scale_of(exponent);
      Vu sum{};
      for (int j = 0; j < kBlock; j += kWidth) sum += quantize(load<Vf>(block.d[i] + j), scale);
      totals->bins[i][exponent] += sum_lanes(sum) - kBlock * kRintMagicBits;
    }
  }
}

template <int kTargets>
void score_block(const Block& block, int targets, uint32_t* scores) {
  for (int j = 0; j < kBlock; j += kWidth) store(scores + j, bits(variance_of<kTargets>(block, targets, j)));
}

// Loads a block and computes its scores; the block is then ready for quantize().
void load_scored(const Chunk& chunk, int64_t at, int64_t count, Block* block, uint32_t* peaks, uint32_t* scores,
                 Totals* totals) {
  load_block<true>(chunk, at, count, block, peaks);
  const bool rare = any_nonfinite(chunk.targets, peaks);
  if (rare) sanitize(chunk, at, count, block, totals->nonfinite);
  FUSEO1_UNROLL_TARGETS(chunk.targets, score_block<kTargets>(*block, chunk.targets, scores))
  if (rare) clamp_squares(chunk.targets, block, peaks);
}

template <int kTargets>
FUSEO1_INLINE void add_candidate(const Chunk& chunk, int64_t index, uint32_t score, const Block& block, int j,
                                 const uint32_t* exponents, Totals* totals) {
  const int n = kTargets ? kTargets : chunk.targets;
  uint32_t* word = totals->candidates;
  *word++ = score;
  *word++ = static_cast<uint32_t>(index);
  *word++ = static_cast<uint32_t>(index >> 32);
  uint8_t* exponent = reinterpret_cast<uint8_t*>(word + n);
  for (int i = 0; i < n; ++i) {
    float scale;
    const uint32_t as_bits = scale_bits(exponents[i]);
    memcpy(&scale, &as_bits, sizeof scale);
    const float x = block.d[i][j];
    const float rounded = x * x * scale + kRintMagic;
    memcpy(word, &rounded, sizeof rounded);
    *word++ -= kRintMagicBits;
    exponent[i] = static_cast<uint8_t>(exponents[i]);
  }
  totals->candidates += candidate_words(n);
}

template <int kTargets>
int64_t scan_blocks(const Chunk& chunk, int64_t begin, int64_t end, Bracket bracket, Totals* totals) {
  const int n = kTargets ? kTargets : chunk.targets;
  const int64_t room_needed = bracket.low <= bracket.high ? kBlock * candidate_words(n) : 0;
  Block block;
  uint32_t peaks[FUSEO1_MAX_TARGETS], exponents[FUSEO1_MAX_TARGETS];
  alignas(64) uint32_t scores[kBlock];
  // Scores are bits of non-negative floats: signed comparisons order them too.
  const Vi below = (Vi)splat(bracket.low - 1), high = (Vi)splat(bracket.high);
  for (int64_t at = begin; at < end; at += kBlock) {
    if (totals->candidates_end - totals->candidates < room_needed) return at;
    const int64_t count_here = end - at < kBlock ? end - at : kBlock;
    load_scored(chunk, at, count_here, &block, peaks, scores, totals);
    for (int i = 0; i < n; ++i) exponents[i] = exponent_of(peaks[i]);

    uint32_t zeros = 0, above = 0;
    for (int j = 0; j < kBlock; j += kWidth) {
      const Vi v = load<Vi>(scores + j);
      const Mask is_above = greater(v, high);
      zeros += count(equal(v, Vi{}));
      above += count(is_above);
      for (uint32_t rest = lane_bits(greater(v, below)) & ~lane_bits(is_above); rest; rest &= rest - 1) {
        const int lane = j + __builtin_ctz(rest);
        add_candidate<kTargets>(chunk, chunk.offset + at + lane, scores[lane], block, lane, exponents, totals);
      }
    }
    totals->nonzero += kBlock - zeros;
    totals->above += above;

    for (int i = 0; i < n; ++i) {
      const Vf scale = scale_of(exponents[i]);
      Vu sum{};
      for (int j = 0; j < kBlock; j += kWidth) {
        sum += keep(greater(load<Vi>(scores + j), high), quantize(load<Vf>(block.d[i] + j), scale));
      }
      totals->bins[i][exponents[i]] += sum_lanes(sum) - above * kRintMagicBits;
    }
  }
  return end;
}

int64_t scan_run(const Chunk& chunk, int64_t begin, int64_t end, Bracket bracket, Totals* totals) {
  FUSEO1_UNROLL_TARGETS(chunk.targets, return scan_blocks<kTargets>(chunk, begin, end, bracket, totals))
}

void score_run(const Chunk& chunk, int64_t begin, int64_t end, uint32_t* scores, Totals* totals) {
  Block block;
  uint32_t peaks[FUSEO1_MAX_TARGETS];
  alignas(64) uint32_t whole[kBlock];
  for (int64_t at = begin; at < end; at += kBlock) {
    const int64_t count = end - at < kBlock ? end - at : kBlock;
    load_scored(chunk, at, count, &block, peaks, whole, totals);
    memcpy(scores + (at - begin), whole, static_cast<size_t>(count) * sizeof *whole);
  }
}

}  // namespace

extern const SceKernels FUSEO1_JOIN(sce_, FUSEO1_ISA) = {energy_run, scan_run, score_run};

}  // namespace fuseo1
