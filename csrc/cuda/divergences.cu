// SPDX-License-Identifier: Apache-2.0
// The C ABI of the survey of divergences (include/fuseo1/cuda.h).
#include "divergences.cuh"
#include "launch.cuh"

using namespace fuseo1;

extern "C" int fuseo1_cuda_survey_divergences(const fuseo1_operand* operands, int64_t numel, int64_t row,
                                              float* divergences, fuseo1_cuda_sums* result, void* stream) {
  Inputs in = {};
  if (!make_inputs(operands, 1, numel, &in) || row < 1 || numel % row || (!divergences && numel) || !result) {
    return FUSEO1_BAD_ARGUMENT;
  }
  const int status = clear(result, sizeof *result, in, stream);
  if (status || !numel) return status;
  return launch("find_divergences", in, find_divergences, numel / row, stream, in, row, divergences, result);
}
