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

// The places of a block's marked elements, and four zeros. Four of a word at once, because a loop that ends after one
// or two is mispredicted.
FUSEO1_INLINE void find_marked(const uint64_t marks[kBlock / 64], uint8_t* places) {
  for (int w = 0; w < kBlock / 64; ++w) {
    uint64_t rest = marks[w];
    const auto next = [&] {
      const int bit = __builtin_ctzll(rest | uint64_t{1} << 63);
      rest &= rest - 1;
      return static_cast<uint8_t>(w * 64 + bit);
    };
    for (int c = 0; c < 4; ++c) places[c] = next();
    for (int c = 4; rest; ++c) places[c] = next();
    places += __builtin_popcountll(marks[w]);
  }
  memset(places, 0, 4);
}

// With vectors of 16 lanes many candidates are picked from vectors, which takes the same time for any number of them.
constexpr uint32_t kFew = kWidth == 16 ? 32 : kBlock;

// Keeps the marked elements of a block as candidates.
template <int kTargets>
void add_candidates(const Chunk& chunk, int64_t at, const uint64_t marks[kBlock / 64], uint32_t count, bool keep_scores,
                    const uint32_t* scores, const Block& block, const uint32_t* exponents, Totals* totals) {
  const int n = kTargets ? kTargets : chunk.targets;
  uint32_t* const record = totals->candidates_end - kMarkWords;
  uint32_t* const payload = record - payload_words(n, static_cast<int>(count));
  uint8_t* const exponent = reinterpret_cast<uint8_t*>(payload);
  for (int i = 0; i < n; ++i) exponent[i] = static_cast<uint8_t>(exponents[i]);
  uint32_t* t = payload + exponent_words(n);
  uint32_t* const kept = totals->candidates;
  if (count <= kFew) {
    uint8_t places[kBlock + 4];
    find_marked(marks, places);
    // Four at a time; up to three words beyond are written, which the next target, or the record, will overwrite.
    for (uint32_t c = 0; keep_scores && c < count; c += 4) {
      for (uint32_t k = c; k < c + 4; ++k) kept[k] = scores[places[k]];
    }
    for (int i = 0; i < n; ++i, t += count) {
      float scale;
      const uint32_t as_bits = scale_bits(exponents[i]);
      memcpy(&scale, &as_bits, sizeof scale);
      for (uint32_t c = 0; c < count; c += 4) {
        float rounded[4];
        uint32_t four[4];
        for (uint32_t k = 0; k < 4; ++k) {
          const float x = block.d[i][places[c + k]];
          rounded[k] = x * x * scale + kRintMagic;
        }
        memcpy(four, rounded, sizeof four);
        for (uint32_t k = 0; k < 4; ++k) four[k] -= kRintMagicBits;
        memcpy(t + c, four, sizeof four);
      }
    }
  } else {
    const auto lanes = [&](int j) { return static_cast<uint32_t>(marks[j / 64] >> j % 64) & kAllLaneBits; };
    uint32_t* to = kept;
    for (int j = 0; keep_scores && j < kBlock; j += kWidth) to += pack(lanes(j), load<Vu>(scores + j), to);
    for (int i = 0; i < n; ++i) {
      const Vf scale = scale_of(exponents[i]);
      for (int j = 0; j < kBlock; j += kWidth) {
        t += pack_exactly(lanes(j), quantize(load<Vf>(block.d[i] + j), scale) - splat(kRintMagicBits), t);
      }
    }
  }
  const uint64_t head = record_head((chunk.offset + at) / kBlock, count);
  memcpy(record, &head, sizeof head);
  memcpy(record + 2, marks, kBlock / 8);
  totals->candidates += keep_scores ? count : 0;
  totals->candidates_end = payload;
  totals->candidate_count += count;
}

template <int kTargets>
int64_t scan_blocks(const Chunk& chunk, int64_t begin, int64_t end, Bracket bracket, Totals* totals) {
  const int n = kTargets ? kTargets : chunk.targets;
  const int64_t room_needed = bracket.low <= bracket.high ? mark_room(n) : 0;
  Block block;
  uint32_t peaks[FUSEO1_MAX_TARGETS], exponents[FUSEO1_MAX_TARGETS];
  alignas(64) uint32_t scores[kBlock];
  // Scores are bits of non-negative floats: signed comparisons order them too.
  const Vi below = (Vi)splat(bracket.low - 1), high = (Vi)splat(bracket.high), beyond = (Vi)splat(bracket.high + 1);
  for (int64_t at = begin; at < end; at += kBlock) {
    if (totals->candidates_end - totals->candidates < room_needed) return at;
    const int64_t count_here = end - at < kBlock ? end - at : kBlock;
    load_scored(chunk, at, count_here, &block, peaks, scores, totals);
    for (int i = 0; i < n; ++i) exponents[i] = exponent_of(peaks[i]);

    Vu zeros{}, reached{};
    uint64_t marks[kBlock / 64];
    uint32_t candidates = 0;
    for (int w = 0; w < kBlock / 64; ++w) {
      Mask is_inside[64 / kWidth];
      for (int i = 0; i < 64 / kWidth; ++i) {
        const Vi v = load<Vi>(scores + w * 64 + i * kWidth);
        const Mask reaches = greater(v, below);
        zeros = add(equal(v, Vi{}), zeros, splat(1u));
        reached = add(reaches, reached, splat(1u));
        is_inside[i] = reaches & greater(beyond, v);
      }
      marks[w] = join(is_inside);
      candidates += static_cast<uint32_t>(__builtin_popcountll(marks[w]));
    }
    const uint32_t above = sum_lanes(reached) - candidates;
    totals->nonzero += kBlock - sum_lanes(zeros);
    totals->above += above;
    if (candidates) {
      add_candidates<kTargets>(chunk, at, marks, candidates, bracket.low < bracket.high, scores, block, exponents,
                               totals);
    }

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

void add_selected(const uint32_t* payload, int64_t count, int targets, const uint32_t* scores, uint32_t least,
                  Totals* totals) {
  const auto* exponent = reinterpret_cast<const uint8_t*>(payload);
  const uint32_t* t = payload + exponent_words(targets);
  const Vi below = (Vi)splat(least - 1);
  for (int i = 0; i < targets; ++i, t += count) {
    Vu sum{};
    for (int64_t c = 0; c < count; c += kWidth) {
      const int64_t left = count - c;
      sum += keep(greater((Vi)load_first(scores + c, left), below), load_first(t + c, left));
    }
    totals->bins[i][exponent[i]] += sum_lanes(sum);  // at most 256 terms of at most 2^23
  }
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

extern const SceKernels FUSEO1_JOIN(sce_, FUSEO1_ISA) = {energy_run, scan_run, score_run, add_selected};

}  // namespace fuseo1
