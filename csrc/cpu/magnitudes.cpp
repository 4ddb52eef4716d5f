// SPDX-License-Identifier: Apache-2.0
// The survey of magnitudes (include/fuseo1/survey.h), block by block. Compiled once per instruction set with FUSEO1_ISA
// naming it.
#include "nonfinite.h"
#include "row_factors.h"

namespace fuseo1 {
namespace {

FUSEO1_INLINE Vu magnitude(const float* d) { return load<Vu>(d) & 0x7fffffffu; }

// Loads a block's task vectors, or, with factors, what they multiply |d| to.
FUSEO1_INLINE void load_scored(const Chunk& chunk, int64_t at, int64_t count, const fuseo1_row_factors* rows,
                               Block* block, int64_t* nonfinite) {
  load_finite(chunk, at, count, block, nonfinite);
  for (int i = 0; rows && i < chunk.targets; ++i) {
    score_rows(*rows, chunk.offset + at, count, block->d[i], block->d[i]);
  }
}

void score_block(const Chunk& chunk, int64_t at, int64_t count, const fuseo1_row_factors* rows, uint32_t* scores,
                 int64_t* nonfinite) {
  Block block;
  load_scored(chunk, at, count, rows, &block, nonfinite);
  for (int i = 0; i < chunk.targets; ++i, scores += kBlock) {
    for (int j = 0; j < kBlock; j += kWidth) store(scores + j, magnitude(block.d[i] + j));
  }
}

// Ranks a block of one target. kScores: the bracket is more than a single score, so that candidates' are kept.
template <bool kScores>
void rank_block(const float* d, int64_t index, Ranked* to) {
  // Scores are bits of non-negative floats: signed comparisons order them too.
  const Vi below = (Vi)splat(to->bracket.low - 1), beyond = (Vi)splat(to->bracket.high + 1);
  uint32_t* const record = to->candidates;
  uint8_t none[kBlock / 8];  // where there are no candidates there is no record
  auto* const marks = to->bracket.low <= to->bracket.high ? reinterpret_cast<uint8_t*>(record + 3) : none;
  uint32_t inside = 0;
  Vu reached{};
  for (int j = 0; j < kBlock; j += kWidth) {
    const Vu v = magnitude(d + j);
    const Mask reaches = greater((Vi)v, below);
    reached = add(reaches, reached, splat(1u));
    const uint32_t lanes = lane_bits(reaches & greater(beyond, (Vi)v));
    store_lane_bits(marks, j, lanes);
    if (kScores) pack(lanes, v, record + kMarkWords + inside);
    inside += static_cast<uint32_t>(__builtin_popcount(lanes));
  }
  to->above += sum_lanes(reached) - inside;
  to->candidate_count += inside;
  if (inside == 0) return;
  record[0] = static_cast<uint32_t>(index);
  record[1] = static_cast<uint32_t>(index >> 32);
  record[2] = inside;
  uint32_t* next = record + kMarkWords;
  if (kScores) {
    memset(next + inside, 0, kMarkPad * sizeof *next);
    next += (inside + kMarkPad - 1) / kMarkPad * kMarkPad;
  }
  to->candidates = next;
}

int64_t scan_run(const Chunk& chunk, int64_t begin, int64_t end, const fuseo1_row_factors* rows,
                 Ranked* const* rankings, int count, int64_t* nonfinite) {
  Block block;
  for (int64_t at = begin; at < end; at += kBlock) {
    for (int r = 0; r < count; ++r) {
      const Ranked& ranking = *rankings[r];
      const bool keeps = ranking.bracket.low <= ranking.bracket.high;
      if (keeps && ranking.candidates_end - ranking.candidates < kMarkRoom) return at;
    }
    load_scored(chunk, at, end - at < kBlock ? end - at : kBlock, rows, &block, nonfinite);
    for (int r = 0; r < count; ++r) {
      Ranked* const to = rankings[r];
      if (to->bracket.low < to->bracket.high) {
        rank_block<true>(block.d[to->target], chunk.offset + at, to);
      } else {
        rank_block<false>(block.d[to->target], chunk.offset + at, to);
      }
    }
  }
  return end;
}

void compare_scores(const uint32_t* begin, const uint32_t* end, const uint32_t* guesses, MarkCounts* to) {
  static_assert(kMarkPad % kWidth == 0);
  Vi limits[kGuesses];
  for (int g = 0; g < kGuesses; ++g) limits[g] = (Vi)splat(guesses[g]);
  Vu are_equal[kGuesses] = {}, are_above[kGuesses] = {};
  int64_t lowest = INT64_MAX, highest = -1;
  for (const uint32_t* r = begin; r != end;) {
    const int64_t block = static_cast<int64_t>(r[1]) << 32 | r[0];
    lowest = block < lowest ? block : lowest, highest = block > highest ? block : highest;
    const uint32_t count = r[2];
    r += kMarkWords;
    for (uint32_t j = 0; j < count; j += kMarkPad, r += kMarkPad) {
      for (int k = 0; k < kMarkPad; k += kWidth) {
        const Vi v = load<Vi>(r + k);
        for (int g = 0; g < kGuesses; ++g) {
          are_equal[g] = add(equal(v, limits[g]), are_equal[g], splat(1u));
          are_above[g] = add(greater(v, limits[g]), are_above[g], splat(1u));
        }
      }
    }
  }
  to->lowest = lowest, to->highest = highest;
  for (int g = 0; g < kGuesses; ++g) to->equal[g] = sum_lanes(are_equal[g]), to->above[g] = sum_lanes(are_above[g]);
}

}  // namespace

extern const MagnitudeKernels FUSEO1_JOIN(magnitudes_, FUSEO1_ISA) = {score_block, scan_run, compare_scores};

}  // namespace fuseo1
