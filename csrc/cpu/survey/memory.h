// SPDX-License-Identifier: Apache-2.0
// The memory of SCE's survey, and its cost in bytes: max_bytes is a promise.
#ifndef FUSEO1_CPU_SURVEY_MEMORY_H_
#define FUSEO1_CPU_SURVEY_MEMORY_H_

#include <stdint.h>

#include "fuseo1/survey.h"
#include "kernels/table.h"
#include "marks.h"
#include "pages.h"
#include "parallel.h"
#include "ranking.h"

namespace fuseo1 {

constexpr int64_t kPiece = 4096;  // elements whose scores are computed at a time: they stay in the L1 cache

// One thread's share of a pass; kept from chunk to chunk.
struct Share {
  Share(int targets, int64_t bins) : marks(targets), histogram(static_cast<size_t>(bins)) {}
  Totals totals;
  Marks marks;
  Pages<int64_t> histogram;
  int64_t zeros = 0;
  uint32_t scores[kPiece];
};

// In every pass: the survey itself and small allocations; per thread its share and its stack, which holds a widened
// block of 64 targets.
constexpr int64_t kFixedBytes = 256 << 10;
constexpr int64_t kThreadBytes = static_cast<int64_t>(sizeof(Share)) + (128 << 10);
constexpr int64_t kLeastSlabs = 2;  // per thread of a scan: fewer threads are better than too few slabs for each

// Ties are counted by stretches of this many elements, and those of one stretch are kept as candidates: both take about
// the same memory.
inline int64_t tie_stretch(int64_t numel, int targets) {
  int64_t stretch = kBlock;
  while (stretch < kSegment && numel / stretch > 2 * stretch * (targets + 1)) stretch *= 2;
  return stretch;
}
inline int64_t stretches(int64_t numel, int targets) {
  const int64_t stretch = tie_stretch(numel, targets);
  return (numel + stretch - 1) / stretch;
}

// Bytes of a pass beyond kFixedBytes, once and per thread; `kept`: how many candidates an ENERGY pass must be able to
// keep.
struct Cost {
  int64_t once, per_thread;
};
inline Cost cost_of(int phase, int64_t numel, int targets, int64_t kept) {
  const int64_t selection = mark_selection_bytes(0);
  const int64_t selecting_thread = kThreadBytes + mark_selection_bytes(1) - selection;
  switch (phase) {
    case FUSEO1_SURVEY_SCAN:
      return {selection, selecting_thread + kLeastSlabs * kSlabBytes};
    case FUSEO1_SURVEY_HIGH:
      return {0, kThreadBytes + kHighBins * 8};
    case FUSEO1_SURVEY_LOW:
      return {0, kThreadBytes + kLowBins * 8};
    case FUSEO1_SURVEY_TIES:
      return {stretches(numel, targets) * 4, kThreadBytes};
    default:
      if (!kept) return {0, kThreadBytes};
      return {selection + mark_slabs(kept, targets) * kSlabBytes, selecting_thread + kSlabBytes};
  }
}

}  // namespace fuseo1
#endif  // FUSEO1_CPU_SURVEY_MEMORY_H_
