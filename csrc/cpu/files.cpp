// SPDX-License-Identifier: Apache-2.0
// survey, fuse and average of files, piece by piece (include/fuseo1/files.h).
#include "fuseo1/files.h"

#include <errno.h>
#include <unistd.h>

#include "ranked_selects.h"
#include "survey/base.h"

namespace fuseo1 {
namespace {

// A piece of all inputs together: half of a core's L2 cache on AMD Zen 4 and 5, a quarter on Intel's servers.
constexpr int64_t kPieceBytes = 512 << 10;
// Threads are started for every piece, so pieces for several threads are larger.
constexpr int64_t kPiecesPerThread = 4;
constexpr int64_t kAlign = 64;

// Reads all of [offset, offset + bytes); else sets errno, 0 for the end of the file.
bool read_all(int fd, char* to, int64_t bytes, int64_t offset, int* number) {
  while (bytes > 0) {
    const ssize_t got = pread(fd, to, static_cast<size_t>(bytes), offset);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) {
      *number = got < 0 ? errno : 0;
      return false;
    }
    to += got, offset += got, bytes -= got;
  }
  return true;
}

// The selections of the piece that begins at the chunk's element `first`, which is a multiple of kBlock, and so of a
// word of bits.
void select_in_piece(const fuseo1_select* selects, int32_t targets, int64_t first, fuseo1_select* of_piece) {
  for (int i = 0; i < targets; ++i) {
    of_piece[i] = selects[i];
    if (selects[i].kind == FUSEO1_SELECT_BITS) of_piece[i].bits += first / 64;
  }
}

// How many elements of every input fit into `bytes`, in whole blocks; 0 if the arguments are outside the contract.
int64_t elements_in(const fuseo1_file* files, int32_t targets, fuseo1_scratch scratch, int64_t bytes) {
  if (!files || !scratch.data || targets < 0 || targets > FUSEO1_MAX_TARGETS) return 0;
  int64_t element_bytes = 0;
  for (int i = 0; i <= targets; ++i) {
    if (files[i].dtype < FUSEO1_BF16 || files[i].dtype > FUSEO1_FP32) return 0;
    element_bytes += element_size(files[i].dtype);
  }
  const int64_t least = kBlock * element_bytes + (targets + 1) * kAlign;
  if (scratch.bytes < least) return 0;
  bytes = std::max(std::min(bytes, scratch.bytes), least);
  return (bytes - (targets + 1) * kAlign) / element_bytes / kBlock * kBlock;
}

// How many elements of every input make a piece of whole rows: about `bytes` in all, or the fewest possible; 0 if the
// scratch does not hold these, or the arguments are outside the contract.
int64_t piece_of(const fuseo1_file* files, int32_t targets, int64_t row, int64_t count, fuseo1_scratch scratch,
                 int64_t bytes) {
  const int64_t step = step_of(row), piece = elements_in(files, targets, scratch, bytes);
  if (piece >= step) return piece / step * step;
  const int64_t most = elements_in(files, targets, scratch, scratch.bytes);
  return most >= step ? step : most >= count ? most : 0;
}

// Lays `n` elements of every input out in the scratch.
void lay_out(const fuseo1_file* files, int32_t targets, fuseo1_scratch scratch, int64_t n, fuseo1_operand* operands) {
  char* to = static_cast<char*>(scratch.data);
  for (int i = 0; i <= targets; ++i) {
    operands[i] = {to, files[i].dtype};
    to += (n * element_size(files[i].dtype) + kAlign - 1) / kAlign * kAlign;
  }
}

// Reads elements [from, from + n) of a file to the place of element `at` of its operand.
bool read_elements(const fuseo1_file& file, const fuseo1_operand& operand, int64_t at, int64_t from, int64_t n,
                   int* number) {
  const int64_t size = element_size(file.dtype);
  char* to = static_cast<char*>(const_cast<void*>(operand.data)) + at * size;
  return read_all(file.fd, to, n * size, file.offset + from * size, number);
}

// Calls work(operands, first, n) on each piece of whole rows, in order; work returns a status.
template <class Work>
int for_each_piece(const fuseo1_file* files, int32_t targets, int64_t row, int64_t offset, int64_t count,
                   fuseo1_scratch scratch, int32_t threads, fuseo1_read_error* error, const Work& work) {
  const int64_t wanted = threads == 1 ? kPieceBytes : threads * kPiecesPerThread * kPieceBytes;
  const int64_t piece = piece_of(files, targets, row, count, scratch, wanted);
  if (piece == 0 || !error || threads < 1 || offset < 0 || offset % kBlock || count < 0) return FUSEO1_BAD_ARGUMENT;
  const int inputs = targets + 1;
  fuseo1_operand operands[FUSEO1_MAX_TARGETS + 1];
  for (int64_t done = 0; done < count; done += piece) {
    const int64_t n = std::min(piece, count - done);
    lay_out(files, targets, scratch, n, operands);
    std::atomic<int> next{0}, failed{inputs};
    int numbers[FUSEO1_MAX_TARGETS + 1];
    in_parallel(std::min<int64_t>(threads, inputs), [&](int64_t) {
      for (int i; (i = next.fetch_add(1)) < inputs;) {
        if (read_elements(files[i], operands[i], 0, offset + done, n, &numbers[i])) continue;
        int lowest = failed;
        while (i < lowest && !failed.compare_exchange_weak(lowest, i)) {
        }
      }
    });
    if (failed < inputs) {
      *error = {failed, numbers[failed]};
      return FUSEO1_READ_FAILED;
    }
    const int status = work(operands, done, n);
    if (status != FUSEO1_OK) return status;
  }
  return FUSEO1_OK;
}

}  // namespace
}  // namespace fuseo1

extern "C" int fuseo1_survey_sample_files(fuseo1_survey* survey, const fuseo1_file* files, int32_t targets,
                                          int64_t stride, fuseo1_scratch scratch, fuseo1_read_error* error) {
  using namespace fuseo1;
  const int64_t room = elements_in(files, targets, scratch, kPieceBytes);
  if (targets < 1 || room == 0 || !error || stride < 1) return FUSEO1_BAD_ARGUMENT;
  if (fuseo1_survey_phase_of(survey) != FUSEO1_SURVEY_SAMPLE) return FUSEO1_WRONG_PHASE;
  int64_t runs, length;
  fuseo1_survey_sample_shape(survey, &runs, &length);
  fuseo1_operand operands[FUSEO1_MAX_TARGETS + 1];
  lay_out(files, targets, scratch, room, operands);
  for (int64_t run = 0; run < runs;) {
    const int64_t first = run;
    int64_t filled = 0;
    for (int i = 0; i <= targets; ++i) {
      for (run = first, filled = 0; run < runs && filled + length <= room; run += stride, filled += length) {
        int number;
        if (!read_elements(files[i], operands[i], filled, fuseo1_survey_sample_start(survey, run), length, &number)) {
          *error = {i, number};
          return FUSEO1_READ_FAILED;
        }
      }
    }
    const int status = update_sample(survey, operands, filled, first, stride);
    if (status != FUSEO1_OK) return status;
  }
  return fuseo1_survey_end_pass(survey);
}

extern "C" int fuseo1_survey_update_files(fuseo1_survey* survey, const fuseo1_file* files, int32_t targets,
                                          int64_t offset, int64_t count, fuseo1_scratch scratch, int32_t threads,
                                          fuseo1_read_error* error) {
  if (targets < 1) return FUSEO1_BAD_ARGUMENT;
  if (fuseo1_survey_phase_of(survey) == FUSEO1_SURVEY_SAMPLE) return FUSEO1_WRONG_PHASE;
  return fuseo1::for_each_piece(files, targets, survey->row(), offset, count, scratch, threads, error,
                                [&](const fuseo1_operand* operands, int64_t first, int64_t n) {
                                  return fuseo1_survey_update(survey, operands, offset + first, n, threads);
                                });
}

extern "C" int fuseo1_fuse_files(const fuseo1_fuse_params* params, const fuseo1_file* files, int64_t offset,
                                 int64_t count, fuseo1_scratch scratch, void* out, int32_t out_dtype, int32_t threads,
                                 int64_t* nonfinite, fuseo1_read_error* error) {
  if (!params || params->targets < 0 || params->targets > FUSEO1_MAX_TARGETS || !nonfinite || out_dtype < FUSEO1_BF16 ||
      out_dtype > FUSEO1_FP32 || (!out && count)) {
    return FUSEO1_BAD_ARGUMENT;
  }
  *nonfinite = 0;
  const int64_t size = fuseo1::element_size(out_dtype);
  fuseo1_fuse_params piece = *params;
  fuseo1_select selects[FUSEO1_MAX_TARGETS];
  if (params->selects) piece.selects = selects;
  const int64_t row = fuseo1::ranked_row(params->selects, params->targets);
  return fuseo1::for_each_piece(files, params->targets, row, offset, count, scratch, threads, error,
                                [&](const fuseo1_operand* operands, int64_t first, int64_t n) {
                                  int64_t found = 0;
                                  if (params->selects)
                                    fuseo1::select_in_piece(params->selects, params->targets, first, selects);
                                  char* to = static_cast<char*>(out) + first * size;
                                  const int status =
                                      fuseo1_fuse(&piece, operands, offset + first, n, to, out_dtype, threads, &found);
                                  *nonfinite += found;
                                  return status;
                                });
}

extern "C" int fuseo1_average_files(const fuseo1_average_params* params, const fuseo1_file* files, int64_t offset,
                                    int64_t count, fuseo1_scratch scratch, void* out, int32_t out_dtype,
                                    int32_t threads, int64_t* nonfinite, fuseo1_read_error* error) {
  if (!params || params->inputs < 1 || params->inputs > FUSEO1_MAX_AVERAGED || !nonfinite || out_dtype < FUSEO1_BF16 ||
      out_dtype > FUSEO1_FP32 || (!out && params->last && count)) {
    return FUSEO1_BAD_ARGUMENT;
  }
  *nonfinite = 0;
  const int64_t size = fuseo1::element_size(out_dtype);
  fuseo1_average_params piece = *params;
  return fuseo1::for_each_piece(files, params->inputs - 1, 1, offset, count, scratch, threads, error,
                                [&](const fuseo1_operand* operands, int64_t first, int64_t n) {
                                  int64_t found = 0;
                                  if (params->sums) piece.sums = params->sums + first;
                                  char* to = out ? static_cast<char*>(out) + first * size : nullptr;
                                  const int status =
                                      fuseo1_average(&piece, operands, n, to, out_dtype, threads, &found);
                                  *nonfinite += found;
                                  return status;
                                });
}
