// SPDX-License-Identifier: Apache-2.0
// survey, fuse and average on tensors in files: read a piece that fits into the caches, work on it, read the next.
//
// Files are read by pread; formulas and results are those of survey.h, fuse.h and average.h, to the bit. For a file in
// the page cache this is the fastest way, even to read it twice: the bytes go from there into a core's own cache, while
// reading a whole tensor first would send them through memory once more.
#ifndef FUSEO1_FILES_H_
#define FUSEO1_FILES_H_

#include "fuseo1/average.h"
#include "fuseo1/fuse.h"
#include "fuseo1/survey.h"

#ifdef __cplusplus
extern "C" {
#endif

// A tensor's elements in a file, from byte `offset` on, without a gap.
typedef struct {
  int32_t fd;
  int32_t dtype;  // enum fuseo1_dtype
  int64_t offset;
} fuseo1_file;

// The memory that pieces are read into: `bytes` bytes at `data`, aligned to 64, for at least FUSEO1_BLOCK elements of
// every input and 64 bytes more for each. With RANKED for at least as many elements as are whole blocks and whole rows,
// the least common multiple of FUSEO1_BLOCK and row, or for all elements of the call.
typedef struct {
  void* data;
  int64_t bytes;
} fuseo1_scratch;

// The input that could not be read (0 is the base), and errno; 0: the file ended. Set with FUSEO1_READ_FAILED.
typedef struct {
  int32_t input, number;
} fuseo1_read_error;

// Feeds every `stride`-th run of its sample to a survey in SAMPLE, and ends that phase.
int fuseo1_survey_sample_files(fuseo1_survey*, const fuseo1_file* files, int32_t targets, int64_t stride,
                               fuseo1_scratch scratch, fuseo1_read_error* error);

// As fuseo1_survey_update, of a pass but SAMPLE, and as fuseo1_fuse; files[0] is the base.
int fuseo1_survey_update_files(fuseo1_survey*, const fuseo1_file* files, int32_t targets, int64_t offset, int64_t count,
                               fuseo1_scratch scratch, int32_t threads, fuseo1_read_error* error);
int fuseo1_fuse_files(const fuseo1_fuse_params* params, const fuseo1_file* files, int64_t offset, int64_t count,
                      fuseo1_scratch scratch, void* out, int32_t out_dtype, int32_t threads, int64_t* nonfinite,
                      fuseo1_read_error* error);

// As fuseo1_average, of elements [offset, offset + count); `sums` and `out` begin with element `offset`, a multiple of
// FUSEO1_BLOCK.
int fuseo1_average_files(const fuseo1_average_params* params, const fuseo1_file* files, int64_t offset, int64_t count,
                         fuseo1_scratch scratch, void* out, int32_t out_dtype, int32_t threads, int64_t* nonfinite,
                         fuseo1_read_error* error);

#ifdef __cplusplus
}
#endif
#endif  // FUSEO1_FILES_H_
