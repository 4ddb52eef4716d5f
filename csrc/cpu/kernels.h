// SPDX-License-Identifier: Apache-2.0
// The table of kernels that each instruction set fills, and what they accumulate. Plain data only: this header is seen
// by sources compiled for different instruction sets.
#ifndef FUSEO1_CPU_KERNELS_H_
#define FUSEO1_CPU_KERNELS_H_

#include <stdint.h>

#include "arithmetic.h"
#include "fuseo1/fuse.h"
#include "fuseo1/types.h"

namespace fuseo1 {

// A chunk of a tensor: operands[0] is the base, `offset` the flat index of the first element.
struct Chunk {
  const fuseo1_operand* operands;
  int32_t targets;
  int64_t offset;
};

// Scores in [low, high] are candidates, scores beyond `high` are selected for certain. low >= 1; low > high: no score
// is a candidate.
struct Bracket {
  uint32_t low;
  uint32_t high;
};

// One thread's share of a pass. A candidate is candidate_words(targets) words: score, low and high half of its flat
// index, t_1..t_N, then the exponents E_1..E_N, a byte each.
struct Totals {
  int64_t nonzero = 0;
  int64_t above = 0;
  int64_t nonfinite[FUSEO1_MAX_TARGETS + 2] = {};
  int64_t bins[FUSEO1_MAX_TARGETS][kExponents] = {};
  uint32_t* candidates = nullptr;      // where the next one goes
  uint32_t* candidates_end = nullptr;  // of the room for them
};
constexpr int candidate_words(int targets) { return 3 + targets + (targets + 3) / 4; }

// begin and end count elements from the chunk's first; begin is a multiple of kBlock, and so is end unless it is the
// tensor's.
struct Kernels {
  const char* name;
  // survey: every element is selected
  void (*energy)(const Chunk&, int64_t begin, int64_t end, Totals*);
  // survey: a bracket splits the elements; returns where it stopped: at `end`, or before a block for whose candidates
  // there may be no room
  int64_t (*scan)(const Chunk&, int64_t begin, int64_t end, Bracket, Totals*);
  // survey: the scores alone, as fp32 bits, to scores[0 .. end - begin); of the totals it spoils `nonfinite`
  void (*score)(const Chunk&, int64_t begin, int64_t end, uint32_t* scores, Totals*);
  // fuse; `stream` bypasses the caches on the way out; returns how many outputs are not finite
  int64_t (*fuse)(const fuseo1_fuse_params&, const Chunk&, int64_t begin, int64_t end, void* out, int32_t out_dtype,
                  bool stream);
};

struct SurveyKernels {
  decltype(Kernels::energy) energy;
  decltype(Kernels::scan) scan;
  decltype(Kernels::score) score;
};

// Defined once per instruction set by survey.cpp and fuse.cpp.
#define FUSEO1_DECLARE_ISA(isa)            \
  extern const SurveyKernels survey_##isa; \
  extern const decltype(Kernels::fuse) fuse_##isa;
FUSEO1_DECLARE_ISA(baseline)
FUSEO1_DECLARE_ISA(avx2)
FUSEO1_DECLARE_ISA(avx512)
#undef FUSEO1_DECLARE_ISA

#define FUSEO1_JOIN_(a, b) a##b
#define FUSEO1_JOIN(a, b) FUSEO1_JOIN_(a, b)

inline int64_t element_size(int32_t dtype) { return dtype == FUSEO1_FP32 ? 4 : 2; }

}  // namespace fuseo1
#endif  // FUSEO1_CPU_KERNELS_H_
