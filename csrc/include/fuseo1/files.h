// SPDX-License-Identifier: Apache-2.0
// survey and fuse on tensors in files: read a piece that the caches hold, work on it, read the next.
//
// What is read is what pread gives; formulas and results are those of survey.h and fuse.h, to the bit. A file that is
// in the system's page cache is best read so, twice: its bytes go from there into a core's own cache, where reading all
// of a tensor first would send them through memory once more.
#ifndef FUSEO1_FILES_H_
#define FUSEO1_FILES_H_

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

// Where pieces are read to: `bytes` bytes at `data`, enough for FUSEO1_BLOCK elements of every input and 64 bytes
// more, aligned to 64. With RANKED for as many elements as are whole blocks and whole rows, the least common multiple
// of FUSEO1_BLOCK and row, or for all elements of the call.
typedef struct {
  void* data;
  int64_t bytes;
} fuseo1_scratch;

// Which input could not be read (0 is the base), and errno; 0: the file ended. Set with FUSEO1_READ_FAILED.
typedef struct {
  int32_t input, number;
} fuseo1_read_error;

// Feeds a survey in SAMPLE every `stride`th of the runs that it would like, and ends that phase.
int fuseo1_survey_sample_files(fuseo1_survey*, const fuseo1_file* files, int32_t targets, int64_t stride,
                               fuseo1_scratch scratch, fuseo1_read_error* error);

// As fuseo1_survey_update, of a pass but SAMPLE, and as fuseo1_fuse; files[0] is the base.
int fuseo1_survey_update_files(fuseo1_survey*, const fuseo1_file* files, int32_t targets, int64_t offset, int64_t count,
                               fuseo1_scratch scratch, int32_t threads, fuseo1_read_error* error);
int fuseo1_fuse_files(const fuseo1_fuse_params* params, const fuseo1_file* files, int64_t offset, int64_t count,
                      fuseo1_scratch scratch, void* out, int32_t out_dtype, int32_t threads, int64_t* nonfinite,
                      fuseo1_read_error* error);

#ifdef __cplusplus
}
#endif
#endif  // FUSEO1_FILES_H_
