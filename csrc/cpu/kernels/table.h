// SPDX-License-Identifier: Apache-2.0
// The table of kernels that each instruction set fills, and the data that they accumulate. Plain data only: sources
// compiled for different instruction sets include this header.
#ifndef FUSEO1_CPU_KERNELS_TABLE_H_
#define FUSEO1_CPU_KERNELS_TABLE_H_

#include <stdint.h>

#include "arithmetic.h"
#include "fuseo1/average.h"
#include "fuseo1/fold.h"
#include "fuseo1/fuse.h"
#include "fuseo1/types.h"

namespace fuseo1 {

// A chunk of a tensor: operands[0] is the base, `offset` the flat index of the first element.
struct Chunk {
  const fuseo1_operand* operands;
  int32_t targets;
  int64_t offset;
};

// Scores in [low, high] are candidates, scores above `high` are selected for certain. low >= 1; low > high: no score is
// a candidate.
struct Bracket {
  uint32_t low;
  uint32_t high;
};

// One thread's candidates. A block that has some has a record of kMarkWords words: record_head, then a bit for each
// element. Records grow down from candidates_end, each block's before those of earlier blocks. The candidates' scores,
// in order, grow up from `candidates`, unless the bracket is a single score.
struct Filling {
  uint32_t* candidates = nullptr;
  uint32_t* candidates_end = nullptr;
  int64_t candidate_count = 0;  // of the whole pass
  int64_t above = 0;            // elements whose score is above the bracket
};
FUSEO1_HOST_DEVICE constexpr uint64_t record_head(int64_t block, uint32_t candidates) {
  return static_cast<uint64_t>(block) << 9 | candidates;
}
FUSEO1_HOST_DEVICE constexpr int64_t block_of(uint64_t head) { return static_cast<int64_t>(head >> 9); }
FUSEO1_HOST_DEVICE constexpr int candidates_of(uint64_t head) { return static_cast<int>(head & 511); }

// One thread's share of a pass. Below each record lies its block's payload: the exponents E_1..E_N, a byte each, then
// t_1 of all its candidates, t_2 of all, ...
struct Totals : Filling {
  int64_t nonzero = 0;
  int64_t nonfinite[FUSEO1_MAX_TARGETS + 2] = {};
  int64_t bins[FUSEO1_MAX_TARGETS][kExponents] = {};
};

// One thread's share of a scan that ranks a target's |d|.
struct Ranked : Filling {
  int32_t target;
  Bracket bracket;
};
constexpr int kMarkWords = 2 + kBlock / 32;
constexpr int kMarkPad = 16;                               // words after the scores that may be touched
constexpr int kMarkRoom = kMarkWords + kBlock + kMarkPad;  // words that a block may touch
// Words of a block's payload, and words that a block with payload may touch. No targets: no payload.
constexpr int exponent_words(int targets) { return (targets + 3) / 4; }
constexpr int payload_words(int targets, int count) { return exponent_words(targets) + targets * count; }
constexpr int mark_room(int targets) { return kMarkRoom + payload_words(targets, kBlock); }

// How many scores equal each guess, and how many exceed it.
constexpr int kGuesses = 3;
struct GuessCounts {
  int64_t equal[kGuesses], above[kGuesses];
};

// begin and end count elements from the chunk's first. begin is a multiple of kBlock; so is end, except at the tensor's
// end.
struct MagnitudeKernels {
  // the bits of |d_i| of one block: those of target i at scores[i * kBlock]; 0 beyond `count`; nonfinite[targets + 2];
  // the factors, unless nullptr, multiply |d_i|
  void (*score)(const Chunk&, int64_t at, int64_t count, const fuseo1_row_factors*, uint32_t* scores,
                int64_t* nonfinite);
  // every ranking's bracket splits its target's elements; returns where it stopped, as Kernels::scan
  int64_t (*scan)(const Chunk&, int64_t begin, int64_t end, const fuseo1_row_factors*, Ranked* const* rankings,
                  int count, int64_t* nonfinite);
  // `count` is a multiple of kMarkPad; no guess is 0
  GuessCounts (*compare)(const uint32_t* scores, int64_t count, const uint32_t* guesses);
};

using SumBins = int64_t[kExponents];  // a sum's terms by their quantum's exponent

struct SumKernels {
  // sums[2 * i] of all |d_i|, sums[2 * i + 1] of those that selects[i] selects; selects may be nullptr. The mask of a
  // DRAW goes to kept[i], a bit per element of the tensor, unless that is nullptr
  void (*norms)(const Chunk&, int64_t begin, int64_t end, const fuseo1_select* selects, uint64_t* const* kept,
                SumBins* sums, int64_t* nonfinite);
  // sums[2 * i][kUnits] grows by how many elements target i has together with others, sums[2 * i + 1][kUnits] alone
  decltype(norms) overlaps;
  // sums[i * (i + 1) / 2 + k] of v_i * v_k, k <= i: v are the task vectors, or base and targets
  void (*gram)(const Chunk&, int64_t begin, int64_t end, bool of_inputs, SumBins* sums, int64_t* nonfinite);
};

// One thread's memory for deciding RANKED (ranked_selects.h makes it). Elements are counted from the batch's first
// block or, in arrays of one row, from the row's first element.
struct RankRoom {
  uint32_t* magnitudes;    // of a batch: bits of |d|, 0 around it up to whole blocks
  uint32_t *open, *words;  // its elements that need a rank, and their random words
  uint8_t* selected;       // by element: whether its rank selects it; all 0 between batches
  void *bins, *places;     // of a row: its elements' bins of magnitudes, and their places within them
  void* above;  // by bin: how many elements are larger than the bin; these three are uint16_t if row is narrow
  uint32_t *order, *spare;  // of a row, to be sorted
  uint8_t* mixed;           // by bin: whether it may hold different magnitudes
};

// The parameters of one target's RANKED; limits[t] is that of the t-th largest of a row, from 0.
struct RankRule {
  uint64_t key;
  int64_t row;
  const uint32_t* limits;
};
constexpr int64_t kRankBatch = 4096;  // most elements that are decided together, unless a row has more
constexpr int64_t kNarrowRow = 65535;
constexpr int kRankOctaves = 16;  // of magnitudes below a row's largest that have bins of their own
// The base-2 logarithm of an octave's number of bins: few elements per bin, but not many more bins than elements.
inline int rank_bins_log2(int64_t row) {
  int log2 = 5;
  while (log2 < 12 && (int64_t{32} << log2) <= row) ++log2;
  return log2;
}

// Columns and rows count from the range's first; fold.h has the formulas.
struct FoldKernels {
  // elements [begin, end) of the range that begins at the flat index `start`
  void (*fold)(const fuseo1_fold_params&, const fuseo1_operand& weights, int64_t start, int64_t begin, int64_t end,
               float* out);
  // overwrites squares[begin .. end) of these rows; `room` has a row
  void (*row_squares)(const fuseo1_fold_params&, const fuseo1_operand& weights, int64_t begin, int64_t end, float* room,
                      double* squares);
  // adds to squares[begin .. end) of these columns; `room` has as many elements; begin is a multiple of 8
  void (*column_squares)(const fuseo1_fold_params&, const fuseo1_operand& weights, int64_t rows, int64_t begin,
                         int64_t end, float* room, double* squares);
  void (*widen)(const fuseo1_operand&, int64_t at, int64_t count, float* out);
};

struct Kernels {
  const char* name;
  // survey: every element is selected
  void (*energy)(const Chunk&, int64_t begin, int64_t end, Totals*);
  // survey: a bracket splits the elements; returns where it stopped: at `end`, or before a block for whose candidates
  // there may be no room
  int64_t (*scan)(const Chunk&, int64_t begin, int64_t end, Bracket, Totals*);
  // survey: only the scores, as fp32 bits, to scores[0 .. end - begin); overwrites `nonfinite` of the totals
  void (*score)(const Chunk&, int64_t begin, int64_t end, uint32_t* scores, Totals*);
  // survey: adds the energies of a block's candidates with scores of at least `least`; see Totals for the payload
  void (*add_selected)(const uint32_t* payload, int64_t count, int targets, const uint32_t* scores, uint32_t least,
                       Totals*);
  // fuse; `stream`: outputs bypass the caches; returns how many outputs are not finite
  int64_t (*fuse)(const fuseo1_fuse_params&, const Chunk&, int64_t begin, int64_t end, void* out, int32_t out_dtype,
                  bool stream);
  MagnitudeKernels magnitudes;
  SumKernels sums;
  // RANKED for a chunk of one target and `count` elements: sets the bits, which are 0, of selected elements with d != 0
  void (*rank)(const Chunk&, int64_t count, const RankRule&, const RankRoom&, uint64_t* bits);
  // the divergence of a row: elements begin .. end - 1 of the chunk; `room` has twice as many, in whole blocks;
  // nonfinite[3]
  float (*divergence)(const Chunk&, int64_t begin, int64_t end, double* room, int64_t* nonfinite);
  // average of elements begin .. end - 1, which may be any; returns how many outputs are not finite
  int64_t (*average)(const fuseo1_average_params&, const fuseo1_operand*, int64_t begin, int64_t end, void* out,
                     int32_t out_dtype);
  FoldKernels fold;
};

struct SceKernels {
  decltype(Kernels::energy) energy;
  decltype(Kernels::scan) scan;
  decltype(Kernels::score) score;
  decltype(Kernels::add_selected) add_selected;
};

// Each source of kernels/ defines its part, which has the name of the source, once per instruction set.
#define FUSEO1_DECLARE_ISA(isa)                                 \
  extern const SceKernels sce_##isa;                            \
  extern const decltype(Kernels::fuse) fuse_##isa;              \
  extern const MagnitudeKernels magnitudes_##isa;               \
  extern const SumKernels sums_##isa;                           \
  extern const decltype(Kernels::rank) ranked_##isa;            \
  extern const decltype(Kernels::divergence) divergences_##isa; \
  extern const decltype(Kernels::average) average_##isa;        \
  extern const FoldKernels fold_##isa;
FUSEO1_DECLARE_ISA(baseline)
FUSEO1_DECLARE_ISA(avx2)
FUSEO1_DECLARE_ISA(avx512)
#undef FUSEO1_DECLARE_ISA

#define FUSEO1_JOIN_(a, b) a##b
#define FUSEO1_JOIN(a, b) FUSEO1_JOIN_(a, b)

inline int64_t whole_blocks(int64_t count) { return (count + kBlock - 1) / kBlock * kBlock; }

inline int64_t element_size(int32_t dtype) { return dtype == FUSEO1_FP32 ? 4 : 2; }

}  // namespace fuseo1
#endif  // FUSEO1_CPU_KERNELS_TABLE_H_
