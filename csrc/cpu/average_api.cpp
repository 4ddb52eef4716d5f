// SPDX-License-Identifier: Apache-2.0
// average's C ABI: checks arguments and spreads the segments over threads.
#include <atomic>

#include "dispatch.h"
#include "fuseo1/average.h"
#include "parallel.h"

namespace {

bool valid_params(const fuseo1_average_params& params, int64_t count) {
  if (params.inputs < 1 || params.inputs > FUSEO1_MAX_AVERAGED || !params.weights) return false;
  if (params.last && !(params.divisor != 0)) return false;
  return (params.first && params.last) || params.sums || !count;
}

}  // namespace

extern "C" int fuseo1_average(const fuseo1_average_params* params, const fuseo1_operand* operands, int64_t count,
                              void* out, int32_t out_dtype, int32_t threads, int64_t* nonfinite) {
  using namespace fuseo1;
  if (!params || !valid_params(*params, count) || !nonfinite || out_dtype < FUSEO1_BF16 || out_dtype > FUSEO1_FP32 ||
      !valid(operands, params->inputs - 1, 0, count, threads) || (!out && params->last && count)) {
    return FUSEO1_BAD_ARGUMENT;
  }
  const Kernels& k = kernels();
  std::atomic<int64_t> found{0};
  for_each_segment(0, count, threads, [&](int, int64_t begin, int64_t end) {
    found += k.average(*params, operands, begin, end, out, out_dtype);
  });
  *nonfinite = found;
  return FUSEO1_OK;
}
