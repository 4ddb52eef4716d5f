// SPDX-License-Identifier: Apache-2.0
// survey and fuse on NVIDIA GPUs: the contract of survey.h and fuse.h, to the same bits.
//
// Everything is enqueued on `stream` (a cudaStream_t; nullptr is the default stream) of the current device and returns
// at once: nothing waits for the device, all of it can be captured into a graph. What a survey learns stays on the
// device, where fuse finds it. Operands and outputs are device memory of any alignment (16 bytes is fast), valid until
// the stream has passed the call.
//
// Two reads and one write: a sample brackets the threshold, the scan sums the energies above the bracket and keeps the
// few candidates inside it, 8 bytes each; those selected are read again. Should they not suffice, kernels that else
// return at once find the threshold exactly, by histograms, in 2 to 5 reads more; `passes` of the result tells.
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

// How fuse weighs and masks, on the device: fuse.h says what each means.
typedef struct {
  float weights[FUSEO1_CUDA_MAX_TARGETS];
  float floor_divisor;
  int32_t masked;
  uint32_t threshold;
  int64_t tie_limit;
} fuseo1_cuda_params;

// What a survey leaves on the device. `written` counts fuse's outputs that are infinite or NaN.
typedef struct {
  int64_t nonzero, selected, tie_limit;  // as fuseo1_survey_result has them
  uint32_t threshold;
  int32_t passes;
  double energy[FUSEO1_CUDA_MAX_TARGETS];
  int64_t nonfinite[FUSEO1_CUDA_MAX_TARGETS + 2];  // base, targets 1..N, overflows
  int64_t written;
} fuseo1_cuda_survey;

// What surveys of norms and inner products leave there; sums as fuseo1_survey_sums_of has them.
typedef struct {
  double sums[(FUSEO1_CUDA_MAX_TARGETS + 1) * (FUSEO1_CUDA_MAX_TARGETS + 1)];
  int64_t nonfinite[FUSEO1_CUDA_MAX_TARGETS + 2];
  int32_t passes;
} fuseo1_cuda_sums;

// Bytes in which they work.
#define FUSEO1_CUDA_SUMS_BYTES 65792

// From energies to weights: SCE's rule. `mergekit` 1 is the rule of that variant (docs/arithmetic.md).
typedef struct {
  double select_topk;
  int32_t mergekit;
} fuseo1_cuda_sce;

// One tensor of many: what merge_small takes.
typedef struct {
  fuseo1_operand operands[FUSEO1_CUDA_MAX_TARGETS + 1];
  int64_t numel;
  void* out;
  int32_t out_dtype;
} fuseo1_cuda_tensor;

// Most elements of a tensor for merge_small.
#define FUSEO1_CUDA_SMALL 65536

// Bytes that a survey works in: 3 % of its inputs' bytes (as bf16), and at most 2.5 MiB. Candidates have nearly all of
// it: room for 2.1 % of the elements with 2 targets, 2.8 % with 3, 5.6 % with 7. Beyond 2^33 elements none are kept.
int fuseo1_cuda_workspace_bytes(int32_t targets, int64_t numel, double select_topk, size_t* bytes);

// Surveys operands[0 .. targets] of `numel` elements; `result` and `params` are device memory.
int fuseo1_cuda_survey_sce(const fuseo1_operand* operands, int32_t targets, int64_t numel, fuseo1_cuda_sce how,
                           void* workspace, size_t bytes, fuseo1_cuda_survey* result, fuseo1_cuda_params* params,
                           void* stream);

// RANKED selections, and BANDs with factors (device memory, too), are decided before they are applied, by a read more
// of base and target, and kept in device memory, `room`, of so many bytes (0: none is needed): a bit an element and
// such a target, and for RANKED 16 bytes an element of the rows that are sorted at the same time, 64 MiB or a row. A
// CTA sorts a row: a tensor of few long ones is slow.
int fuseo1_cuda_deciding_bytes(const fuseo1_select* selects, int32_t targets, int64_t numel, size_t* bytes);

// Surveys of norms and inner products, as survey.h has them; `work` and `result` are device memory, `selects` (one a
// target; null: everything) is host memory. BITS are not possible. One read; of norms with selections and more than 8
// targets two. Inner products of more than 4 targets are found by fours, after a read that counts what is not finite.
int fuseo1_cuda_survey_norms(const fuseo1_operand* operands, int32_t targets, int64_t numel,
                             const fuseo1_select* selects, void* work, void* room, size_t bytes,
                             fuseo1_cuda_sums* result, void* stream);
int fuseo1_cuda_survey_gram(const fuseo1_operand* operands, int32_t targets, int64_t numel, int32_t of_inputs,
                            void* work, fuseo1_cuda_sums* result, void* stream);

// The survey of magnitudes, as survey.h has it: `ranks` (targets * per_target) is host memory, `cuts` (as many) and the
// factors of `rows` are device memory; of `result` everything but the sums is told. One read of everything, which
// counts what is not finite; then for each rank one of the base and the target as a rule, up to 5 where many |d| are
// equal. `passes` tells the most of these.
int fuseo1_cuda_magnitudes_bytes(int64_t numel, size_t* bytes);
int fuseo1_cuda_survey_magnitudes(const fuseo1_operand* operands, int32_t targets, int64_t numel, const int64_t* ranks,
                                  int32_t per_target, fuseo1_row_factors rows, void* workspace, size_t bytes,
                                  fuseo1_cut* cuts, fuseo1_cuda_sums* result, void* stream);

// The survey of divergences, as survey.h has it, of one target; `divergences` (one a row) and `result`, of which
// everything but the sums is told, are device memory. A warp reads a row three times, one after the other if it is not
// in a cache: a tensor of few long rows is slow.
int fuseo1_cuda_survey_divergences(const fuseo1_operand* operands, int64_t numel, int64_t row, float* divergences,
                                   fuseo1_cuda_sums* result, void* stream);

// Fuses by `params` (device memory); adds to result->written if `result` is given.
int fuseo1_cuda_fuse(const fuseo1_cuda_params* params, const fuseo1_operand* operands, int32_t targets, int64_t offset,
                     int64_t count, void* out, int32_t out_dtype, fuseo1_cuda_survey* result, void* stream);

// Fuses by all that fuse.h knows. `params` is host memory, which is read before the call returns; `bits` of selections
// and `written`, to which outputs that are infinite or NaN are added, are device memory. 0 targets are possible.
int fuseo1_cuda_fuse_general(const fuseo1_fuse_params* params, const fuseo1_operand* operands, int64_t offset,
                             int64_t count, void* out, int32_t out_dtype, int64_t* written, void* room, size_t bytes,
                             void* stream);

// Surveys and fuses `count` tensors of at most FUSEO1_CUDA_SMALL elements in one launch; `tensors` and `results` (one
// each) are device memory.
int fuseo1_cuda_merge_small(const fuseo1_cuda_tensor* tensors, int64_t count, int32_t targets, fuseo1_cuda_sce how,
                            fuseo1_cuda_survey* results, void* stream);

// Why no kernel can run on the current device, or "": there is no driver, no device, or no code for it.
const char* fuseo1_cuda_problem(void);

// What went wrong last on this thread: kernel, shape and the CUDA error; "" if nothing did.
const char* fuseo1_cuda_last_error(void);

#ifdef __cplusplus
}
#endif
#endif  // FUSEO1_CUDA_H_
