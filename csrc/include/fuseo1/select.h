// SPDX-License-Identifier: Apache-2.0
// select: which elements of one target's task vector take part.
//
//   ALL    everything
//   BAND   the `keep` largest magnitudes without the `drop` largest: f is in a cut if the bits of |d| exceed its
//          threshold, or equal it and f <= tie_limit; f is selected if it is in keep and not in drop. With factors |d|
//          is first multiplied by its row's factor, in fp32, and limited to the largest finite number
//   DRAW   at random: word(key, f) < limit, so with probability limit / 2^32
//   BITS   bit f - offset of `bits`, from the lowest bit of the first word; offset is that of the call's chunk
//   CLAMP  everything, with d clamped to +-most
//   RANKED at random, larger |d| more often: word(key, f) < limit(r), where r is the ascending rank by |d| among the
//          n = row elements of its row, flat indices row * k .. row * k + n - 1. Of equals the lowest f ranks highest;
//          what is not finite ranks as infinity. limit(r) = floor(2^32 * p), p = low + (r / (n - 1)) * span in fp64, in
//          that order; for n == 1 p = low + span / 2. Whether a d = 0 is selected makes no difference.
//
// RANKED requires row >= 1, low >= 0, span >= 0 and low + span < 1, the same row for all targets, and chunks of whole
// rows: offset and count are then multiples of row, too.
//
// word(key, f), f = 256 B + 64 j + c: word j of Philox4x32-7 (Salmon et al., SC 2011) of the 128-bit counter
// (lo, hi, 0, 0), where hi:lo = 64 B + c, under the 64-bit key (low word first). It depends on nothing else: not on
// chunks, threads, instruction set, grid or device.
#ifndef FUSEO1_SELECT_H_
#define FUSEO1_SELECT_H_

#include "fuseo1/types.h"

#ifdef __cplusplus
extern "C" {
#endif

enum fuseo1_select_kind {
  FUSEO1_SELECT_ALL = 0,
  FUSEO1_SELECT_BAND = 1,
  FUSEO1_SELECT_DRAW = 2,
  FUSEO1_SELECT_BITS = 3,
  FUSEO1_SELECT_CLAMP = 4,
  FUSEO1_SELECT_RANKED = 5,
};

// The largest magnitudes: bits of |d| above `threshold`, or equal to it at an index of at most tie_limit. All of them:
// threshold 0, tie_limit INT64_MAX. None: threshold 0x7fffffff, tie_limit -1.
typedef struct {
  uint32_t threshold;
  int64_t tie_limit;
} fuseo1_cut;

// A factor of at least 0 for every row: factors[r] is that of the flat indices row * r .. row * r + row - 1.
// factors nullptr: no factors.
typedef struct {
  const float* factors;
  int64_t row;
} fuseo1_row_factors;

typedef struct {
  int32_t kind;  // enum fuseo1_select_kind
  fuseo1_cut keep, drop;
  fuseo1_row_factors rows;
  uint64_t key;
  uint32_t limit;
  const uint64_t* bits;
  float most;
  int64_t row;  // at most INT32_MAX
  double low, span;
} fuseo1_select;

#ifdef __cplusplus
}
#endif
#endif  // FUSEO1_SELECT_H_
