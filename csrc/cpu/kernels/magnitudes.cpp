// SPDX-License-Identifier: Apache-2.0
// The survey of magnitudes (include/fuseo1/survey.h), block by block. Compiled once per instruction set with FUSEO1_ISA
// naming it.
#include "nonfinite.h"
#include "row_factors.h"

namespace fuseo1 {
namespace {

FUSEO1_INLINE Vu magnitude(const float* d) { return load<Vu>(d) & 0x7fffffffu; }

// Loads a block's task vectors or, with factors, their |d| times the factors.
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

// Ranks a block of one target. kScores: the bracket is more than a single score, so candidates' scores are kept.
template <bool kScores>
void rank_block(const float* d, int64_t index, Ranked* to) {
  // Scores are bits of non-negative floats: signed comparisons order them too.
  const Vi below = (Vi)splat(to->bracket.low - 1), beyond = (Vi)splat(to->bracket.high + 1);
  uint32_t* const scores = to->candidates;
  uint64_t bits[kBlock / 64];
  uint32_t inside = 0;
  Vu reached{};
  for (int w = 0; w < kBlock / 64; ++w) {
    Vu v[64 / kWidth];
    Mask is_inside[64 / kWidth];
    for (int i = 0; i < 64 / kWidth; ++i) {
      v[i] = magnitude(d + w * 64 + i * kWidth);
      const Mask reaches = greater((Vi)v[i], below);
      reached = add(reaches, reached, splat(1u));
      is_inside[i] = reaches & greater(beyond, (Vi)v[i]);
    }
    bits[w] = join(is_inside);
    for (int i = 0; kScores && i < 64 / kWidth; ++i) {
      const uint64_t before = bits[w] & ((uint64_t{1} << (i * kWidth)) - 1);
      pack(lane_bits(is_inside[i]), v[i], scores + inside + __builtin_popcountll(before));
    }
    inside += static_cast<uint32_t>(__builtin_popcountll(bits[w]));
  }
  to->above += sum_lanes(reached) - inside;
  if (inside == 0) return;
  const uint64_t head = record_head(index / kBlock, inside);
  uint32_t* const record = to->candidates_end -= kMarkWords;
  memcpy(record, &head, sizeof head);
  memcpy(record + 2, bits, sizeof bits);
  to->candidates += kScores ? inside : 0;
  to->candidate_count += inside;
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

GuessCounts compare_scores(const uint32_t* scores, int64_t count, const uint32_t* guesses) {
  static_assert(kMarkPad % kWidth == 0);
  Vi limits[kGuesses];
  for (int g = 0; g < kGuesses; ++g) limits[g] = (Vi)splat(guesses[g]);
  Vu are_equal[kGuesses] = {}, are_above[kGuesses] = {};
  for (int64_t j = 0; j < count; j += kWidth) {
    const Vi v = load<Vi>(scores + j);
    for (int g = 0; g < kGuesses; ++g) {
      are_equal[g] = add(equal(v, limits[g]), are_equal[g], splat(1u));
      are_above[g] = add(greater(v, limits[g]), are_above[g], splat(1u));
    }
  }
  GuessCounts found;
  for (int g = 0; g < kGuesses; ++g) {
    found.equal[g] = sum_lanes(are_equal[g]);
    found.above[g] = sum_lanes(are_above[g]);
  }
  return found;
}

}  // namespace

extern const MagnitudeKernels FUSEO1_JOIN(magnitudes_, FUSEO1_ISA) = {score_block, scan_run, compare_scores};

}  // namespace fuseo1
