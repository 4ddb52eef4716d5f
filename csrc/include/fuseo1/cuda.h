// SPDX-License-Identifier: Apache-2.0
// survey and fuse on NVIDIA GPUs: the contract of survey.h and fuse.h, to the same bits.
//
// Every call is enqueued on `stream` (a cudaStream_t; nullptr is the default stream) of the current device and returns
// at once: none waits for the device, and all can be captured into a graph. The result of a survey stays on the device,
// where fuse reads it. Operands and outputs are device memory of any alignment (16 bytes is fast), valid until the
// stream has passed the call.
//
// Two reads and one write: a sample brackets the threshold, the scan sums the energies above the bracket and keeps the
// few candidates inside it, 8 bytes each; those selected are read again. If the candidates do not suffice, kernels that
// otherwise return at once find the threshold exactly, by histograms, in 2 to 5 more reads; `passes` of the result says
// how many there were.
#ifndef FUSEO1_CUDA_H_
#define FUSEO1_CUDA_H_

#include <stddef.h>

#include "fuseo1/fuse.h"
#include "fuseo1/survey.h"
#include "fuseo1/types.h"

#ifdef __cplusplus
extern "C" {
#endif

#define FUSEO1_CUDA_MAX_TARGETS 16

// The parameters of fuse on the device; fuse.h defines each.
typedef struct {
  double weights[FUSEO1_CUDA_MAX_TARGETS];
  double floor_divisor;
  int32_t masked;
  uint32_t threshold;
  int64_t tie_limit;
} fuseo1_cuda_params;

// The result of a survey on the device. `written` counts fuse's outputs that are infinite or NaN.
typedef struct {
  int64_t nonzero, selected, tie_limit;  // as fuseo1_survey_result has them
  uint32_t threshold;
  int32_t passes;
  double energy[FUSEO1_CUDA_MAX_TARGETS];
  int64_t nonfinite[FUSEO1_CUDA_MAX_TARGETS + 2];  // base, targets 1..N, overflows
  int64_t written;
} fuseo1_cuda_survey;

// The result of a survey of norms, overlaps or inner products; sums as in fuseo1_survey_sums_of.
typedef struct {
  double sums[(FUSEO1_CUDA_MAX_TARGETS + 1) * (FUSEO1_CUDA_MAX_TARGETS + 1)];
  int64_t nonfinite[FUSEO1_CUDA_MAX_TARGETS + 2];
  int32_t passes;
} fuseo1_cuda_sums;

// Bytes of their workspace.
#define FUSEO1_CUDA_SUMS_BYTES 65792

// SCE's rule from energies to weights. `mergekit` 1: the rule of that variant (docs/arithmetic.md).
typedef struct {
  double select_topk;
  int32_t mergekit;
} fuseo1_cuda_sce;

// One tensor for merge_small.
typedef struct {
  fuseo1_operand operands[FUSEO1_CUDA_MAX_TARGETS + 1];
  int64_t numel;
  void* out;
  int32_t out_dtype;
} fuseo1_cuda_tensor;

// The most elements of a tensor for merge_small.
#define FUSEO1_CUDA_SMALL 65536

// Bytes of a survey's workspace: 3 % of its inputs' bytes (as bf16), and at most 2.5 MiB. Nearly all of it is for
// candidates: 2.1 % of the elements with 2 targets, 2.8 % with 3, 5.6 % with 7. Beyond 2^33 elements none are kept.
int fuseo1_cuda_workspace_bytes(int32_t targets, int64_t numel, double select_topk, size_t* bytes);

// Surveys operands[0 .. targets] of `numel` elements; `result` and `params` are device memory.
int fuseo1_cuda_survey_sce(const fuseo1_operand* operands, int32_t targets, int64_t numel, fuseo1_cuda_sce how,
                           void* workspace, size_t bytes, fuseo1_cuda_survey* result, fuseo1_cuda_params* params,
                           void* stream);

// RANKED selections, and BANDs with factors (also device memory), are decided before they are applied, with one more
// read of base and target, and kept in device memory `room`. Its bytes (0: none is needed): a bit per element and such
// target, and for RANKED 16 bytes per element of the rows that are sorted at the same time, 64 MiB or one row. A CTA
// sorts a row, so a tensor of few long rows is slow.
int fuseo1_cuda_deciding_bytes(const fuseo1_select* selects, int32_t targets, int64_t numel, size_t* bytes);

// Surveys of norms, overlaps and inner products, as survey.h defines them; `work` and `result` are device memory,
// `selects` (one per target; nullptr: everything) is host memory. BITS are not allowed. One read; two for norms with
// selections and more than 8 targets. Inner products of more than 4 targets are computed four at a time, after a read
// that counts elements that are not finite.
int fuseo1_cuda_survey_norms(const fuseo1_operand* operands, int32_t targets, int64_t numel,
                             const fuseo1_select* selects, void* work, void* room, size_t bytes,
                             fuseo1_cuda_sums* result, void* stream);
int fuseo1_cuda_survey_overlaps(const fuseo1_operand* operands, int32_t targets, int64_t numel,
                                const fuseo1_select* selects, void* work, void* room, size_t bytes,
                                fuseo1_cuda_sums* result, void* stream);
int fuseo1_cuda_survey_gram(const fuseo1_operand* operands, int32_t targets, int64_t numel, int32_t of_inputs,
                            void* work, fuseo1_cuda_sums* result, void* stream);

// The survey of magnitudes, as survey.h defines it: `ranks` (targets * per_target) is host memory, `cuts` (as many) and
// the factors of `rows` are device memory; all of `result` but the sums is written. One read of all inputs counts
// elements that are not finite; then each rank usually takes one read of base and target, up to 5 if many |d| are
// equal. `passes` is the most that a rank took.
int fuseo1_cuda_magnitudes_bytes(int64_t numel, size_t* bytes);
int fuseo1_cuda_survey_magnitudes(const fuseo1_operand* operands, int32_t targets, int64_t numel, const int64_t* ranks,
                                  int32_t per_target, fuseo1_row_factors rows, void* workspace, size_t bytes,
                                  fuseo1_cut* cuts, fuseo1_cuda_sums* result, void* stream);

// The survey of divergences, as survey.h defines it, of one target; `divergences` (one per row) and `result`, all of
// which but the sums is written, are device memory. A warp reads its row three times, which takes three reads of memory
// unless a cache holds it; a tensor of few long rows is slow.
int fuseo1_cuda_survey_divergences(const fuseo1_operand* operands, int64_t numel, int64_t row, float* divergences,
                                   fuseo1_cuda_sums* result, void* stream);

// Fuses by `params` (device memory); adds to result->written if `result` is given.
int fuseo1_cuda_fuse(const fuseo1_cuda_params* params, const fuseo1_operand* operands, int32_t targets, int64_t offset,
                     int64_t count, void* out, int32_t out_dtype, fuseo1_cuda_survey* result, void* stream);

// Fuses by any parameters of fuse.h. `params` is host memory, which is read before the call returns; the selections'
// `bits` and `written`, to which the number of infinite or NaN outputs is added, are device memory. 0 targets are
// allowed.
int fuseo1_cuda_fuse_general(const fuseo1_fuse_params* params, const fuseo1_operand* operands, int64_t offset,
                             int64_t count, void* out, int32_t out_dtype, int64_t* written, void* room, size_t bytes,
                             void* stream);

// Surveys and fuses `count` tensors of at most FUSEO1_CUDA_SMALL elements in one launch; `tensors` and `results` (one
// each) are device memory.
int fuseo1_cuda_merge_small(const fuseo1_cuda_tensor* tensors, int64_t count, int32_t targets, fuseo1_cuda_sce how,
                            fuseo1_cuda_survey* results, void* stream);

// Whether there are GPUs here and all of them have machine code in this library, which is told without a context on
// any. If not, they may still run what the driver makes of PTX: ask fuseo1_cuda_problem.
int fuseo1_cuda_has_code(void);

// The reason why no kernel can run on the current device (no driver, no device, or no code for it), or "". Makes a
// context there.
const char* fuseo1_cuda_problem(void);

// The last failure on this thread: kernel, shape and CUDA error; "" if there was none.
const char* fuseo1_cuda_last_error(void);

#ifdef __cplusplus
}
#endif
#endif  // FUSEO1_CUDA_H_
