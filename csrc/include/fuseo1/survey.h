// SPDX-License-Identifier: Apache-2.0
// survey: read base and targets, learn everything global that fuse needs.
//
// Inputs bf16, fp16 or fp32 (mixed freely), widened exactly to fp32; every fp32 operation rounds to nearest even,
// one at a time, in the order written, never contracted to FMA. N targets x_1..x_N, base b, flat index f.
//
//   d_i = x_i - b                                   s = (d_1 + d_2) + ... + d_N
//   m   = s / N                                     v = (((d_1-m)^2 + (d_2-m)^2) + ... + (d_N-m)^2) / N
//   selected: select_topk == 1: every element; else the k = floor(select_topk * count_nonzero(v)) largest v,
//             compared as fp32 bits, ties by lowest f  (floor and product in fp64)
//   q_i = c^2, c = d_i clamped to +-0x1.fffffep63, the largest fp32 with a finite square
//   per block of 256 elements (by f) and target:    M = max q_i over the whole block, E = max(exponent field of M, 22)
//         t_i = rint(q_i * 2^(149-E))               an integer in [0, 2^23]
//   energy_i = sum of t_i * 2^(E-149) over the selected elements: integers are added exactly per E; the 233 exact
//         sums are converted to fp64 and added from the smallest E up.
//
// Integer sums make an energy independent of threads, chunks, instruction set, grid and device, and let elements near
// the threshold be added after the rest, so that one read is enough. Each t is within half a unit of its square, and
// the unit is 2^-23 of the block's largest: about fp32's precision for real weights. The error matters only if a
// block's largest square is not selected and the selected ones are smaller by a factor of thousands.
//
// Elements whose s is not finite (an input is not, or a difference overflows) take no part: v = 0, q_i = 0. They are
// counted, per model. Bytes read: (N+1) * element size per element and pass; one pass, unless the data defeats the
// bracket around the threshold (many equal scores, adversarial order), then up to five.
//
// Source: SCE, arXiv 2408.07990 (FuseChat 3.0 / FuseO1).
#ifndef FUSEO1_SURVEY_H_
#define FUSEO1_SURVEY_H_

#include "fuseo1/select.h"
#include "fuseo1/types.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct fuseo1_survey fuseo1_survey;

// The purpose of a pass over the tensor. A survey begins with SAMPLE (whose data may be left out), then needs passes
// over the whole tensor until it is DONE.
enum fuseo1_survey_phase {
  FUSEO1_SURVEY_SAMPLE = 0,  // a few elements, to bracket the threshold
  FUSEO1_SURVEY_SCAN = 1,    // energies above the bracket, candidates inside it
  FUSEO1_SURVEY_HIGH = 2,    // the exact path: histogram of the scores' high 16 bits
  FUSEO1_SURVEY_LOW = 3,     // histogram of the low 15 bits, inside the chosen high bin
  FUSEO1_SURVEY_TIES = 4,    // the place of the last selected tie
  FUSEO1_SURVEY_ENERGY = 5,  // energies of the selection, which is known by then
  FUSEO1_SURVEY_DONE = 6,
};

typedef struct {
  int64_t nonzero;     // count_nonzero(v); -1 when select_topk is 0 or 1, where no score is computed
  int64_t selected;    // k; numel when select_topk is 1
  uint32_t threshold;  // bits of the k-th largest v; selected: v > threshold, or v == threshold and f <= tie_limit
  int64_t tie_limit;   // numel - 1 when every tie is selected
  int32_t passes;      // reads of the whole tensor
  double energy[FUSEO1_MAX_TARGETS];
  int64_t nonfinite[FUSEO1_MAX_TARGETS + 2];  // base, targets 1..N, elements where finite inputs overflow
} fuseo1_survey_result;

// `max_bytes` bounds the survey's memory at any time, including the stacks that its threads use:
//   the survey itself                              256 KiB
//   a pass, per thread                             273 KiB; in HIGH 510 KiB more, in LOW 256 KiB more
//   SAMPLE                                         4 bytes per sampled element: 256 KiB, or up to max_bytes / 16
//   SCAN, and ENERGY where ties are cut            24 KiB, 32 KiB per thread, and candidates: slabs of 256 KiB, with 40
//                                                  bytes and 1 per target, rounded up to words, for each block that has
//                                                  candidates, and 4 + 4 * targets for each candidate
//   TIES                                           4 bytes per stretch of elements
// SCAN gets as many slabs as fit. If they do not suffice, the exact path follows, which needs slabs only for the ties
// of one stretch (2^8 to 2^16 elements, so that these and the counts of TIES take about the same). If its threads would
// take too much, a pass gets fewer. The minimum, taken whatever max_bytes is, is that of the exact path with one
// thread: about 1 MiB, more for many targets of many elements; 4 MiB suffice for 64 targets of 2^31 elements and for 3
// of 2^35.
int fuseo1_survey_create(int32_t targets, int64_t numel, double select_topk, int64_t max_bytes, fuseo1_survey** out);
void fuseo1_survey_destroy(fuseo1_survey*);

// Five other surveys, with d, M, E and t as above. Elements whose s is not finite are counted, and are 0 in all targets
// (and inputs).
//
// Magnitudes (TIES, breadcrumbs): for target i the cuts after its ranks[i * per_target ..] largest |d_i|, ties by
// lowest f. Zeros are never selected: for k >= count_nonzero(d_i) a cut has threshold 0, tie_limit -1. For k == 0 it
// has threshold 0x7fffffff, tie_limit -1; tie_limit is numel - 1 when every tie is selected. Usually one read for all
// targets; max_bytes bounds all cuts together, and the minimum above holds for each. Slabs have 32 KiB, with 40 bytes
// per block that has candidates and 4 per candidate. Factors (at least 0, one for each whole row; they are copied)
// multiply |d| as in BAND (select.h); then a cut has threshold 0 only for k > count_nonzero.
//
// Norms (rescaling): per target the sums of |d_i| over all elements and over those of its selection (select.h; nullptr:
// all; CLAMP selects all, unclamped). q_i = |d_i| in the formulas of energies. BITS are not allowed. One read. With
// RANKED a thread also takes 28 bytes per element of a row, at least 96 KiB, and a bit per element and target of the
// least number of whole blocks that are whole rows.
//
// Overlaps (RAM+): per target how many elements it has together with other targets, and how many alone. A target has an
// element if its z (fuse.h) is not 0. One read; what norms say of selections holds here too, but no mask is kept.
//
// Gram (spherical methods): the sums of v_i * v_j for all pairs, v = d_1..d_N or (of_inputs) b, x_1..x_N. The product
// is one fp32 operation, of operands clamped as for energies; per block and pair M = max |p|, t = rint(p * 2^(149-E))
// with its sign. One read.
//
// Divergences (Arcee Fusion): for every row of `row` consecutive elements the divergence of the one target x from the
// base. All in fp64, one operation at a time; elements that take no part are left out.
//
//   X = max x   ex_j = exp(x_j - X)   p_j = ex_j / (sum of ex) + 1e-8         q_j of b likewise
//   divergence = sum of p_j * log(p_j / q_j), rounded to fp32; 0 if it is not above 0, or no element takes part
//   sum: element j is added to lane j mod 8, in order; then lanes 4..7 to 0..3, 2..3 to 0..1, 1 to 0
//   exp(x) = 0 if x <= -700; else 2^k * (1/0! + r (1/1! + r (1/2! + ... + r (1/13!)))), each 1/n! rounded,
//            k = rint(x * 0x1.71547652b82fep0), r = (x - k * 0x1.62e42feep-1) - k * 0x1.a39ef35793c76p-33
//   log(y) = k * 0x1.62e42fefa39efp-1 + (w + w * (z * P)),  y = 2^k m, 0x1.6a09ep-1 <= m < 0x1.6a09ep0,
//            f = m - 1, s = f / (2 + f), w = s + s, z = s * s, P = 1/3 + z (1/5 + z (1/7 + ... + z (1/21)))
//
// One read. Memory: 4 bytes per row, and for each thread 16 per element of a row, with no more threads than fit into 4
// MiB; rows that cross chunks are copied until they are whole.
int fuseo1_survey_create_magnitudes(int32_t targets, int64_t numel, const int64_t* ranks, int32_t per_target,
                                    const fuseo1_row_factors* rows, int64_t max_bytes, fuseo1_survey** out);
int fuseo1_survey_create_norms(int32_t targets, int64_t numel, const fuseo1_select* selects, fuseo1_survey** out);
int fuseo1_survey_create_overlaps(int32_t targets, int64_t numel, const fuseo1_select* selects, fuseo1_survey** out);
int fuseo1_survey_create_gram(int32_t targets, int64_t numel, int32_t of_inputs, fuseo1_survey** out);
int fuseo1_survey_create_divergences(int64_t numel, int64_t row, fuseo1_survey** out);

// Their results, when DONE. passes and nonfinite are those of fuseo1_survey_result_of, whose other fields mean nothing
// then. `cuts`: targets * per_target of them, in the order of the ranks. `sums`: for norms, all and selected of target
// 1, of target 2, ...; for overlaps the counts, together and alone, in the same order; for gram the symmetric matrix,
// row by row. `divergences`: one per row.
int fuseo1_survey_cuts_of(const fuseo1_survey*, fuseo1_cut* cuts);
int fuseo1_survey_sums_of(const fuseo1_survey*, double* sums);
int fuseo1_survey_divergences_of(const fuseo1_survey*, float* divergences);

// Lends memory, besides max_bytes, before any data is fed. Successive surveys can share it, so that the system need not
// clear fresh pages for each. The memory is aligned to 8 and outlives the survey. SCAN puts its slabs there before it
// takes memory of its own. Norms keep there the masks that DRAW and RANKED decide, as far as it suffices: 32 bytes per
// block and target. With these as BITS, fuse skips deciding them again, which takes longer than the rest of fuse.
void fuseo1_survey_lend(fuseo1_survey*, void* memory, int64_t bytes);
// The mask that was kept of target `target` (0 is the first), when DONE: bit f is that of the tensor's element f;
// nullptr: none was kept.
int fuseo1_survey_kept_of(const fuseo1_survey*, int32_t target, const uint64_t** bits);

int fuseo1_survey_phase_of(const fuseo1_survey*);

// The sample for the survey: `runs` runs of `run_length` elements, run r starting at fuseo1_survey_sample_start(r).
// 0 runs: no sample is needed.
int fuseo1_survey_sample_shape(const fuseo1_survey*, int64_t* runs, int64_t* run_length);
int64_t fuseo1_survey_sample_start(const fuseo1_survey*, int64_t run);

// Feed `count` elements starting at flat index `offset` (a multiple of FUSEO1_BLOCK) to the current pass; operands[0]
// is the base. In SAMPLE the data are the runs back to back and offset is 0; some may be left out. Chunks may come in
// any order. (A survey of magnitudes with factors ignores a sample that is fed so: it cannot know its rows.)
int fuseo1_survey_update(fuseo1_survey*, const fuseo1_operand* operands, int64_t offset, int64_t count,
                         int32_t threads);
// Ends the pass. FUSEO1_WRONG_PHASE: it has not seen every element once (SAMPLE excepted). FUSEO1_BAD_ARGUMENT: its
// data were not those of earlier passes; the survey has failed.
int fuseo1_survey_end_pass(fuseo1_survey*);

// SAMPLE and every pass at once, for a tensor that is whole in memory.
int fuseo1_survey_run(fuseo1_survey*, const fuseo1_operand* operands, int32_t threads);

int fuseo1_survey_result_of(const fuseo1_survey*, fuseo1_survey_result* out);

#ifdef __cplusplus
}
#endif
#endif  // FUSEO1_SURVEY_H_
