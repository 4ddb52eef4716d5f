// SPDX-License-Identifier: Apache-2.0
// decode's C ABI: checks arguments and spreads segments over threads.
#include "dispatch.h"
#include "fuseo1/decode.h"
#include "parallel.h"

extern "C" int fuseo1_decode(const fuseo1_decode_params* params, const uint8_t* codes, int64_t start, int64_t count,
                             float* out, int32_t threads) {
  const auto* p = params;
  if (!p || p->columns < 1 || p->block_rows < 1 || p->block_columns < 1 || !p->scales || p->code < FUSEO1_E4M3 ||
      p->code > FUSEO1_E5M2 || start < 0 || count < 0 || threads < 1 || (count && (!codes || !out))) {
    return FUSEO1_BAD_ARGUMENT;
  }
  const fuseo1::Kernels& k = fuseo1::kernels();
  fuseo1::for_each_segment(start, count, threads,
                           [&](int, int64_t begin, int64_t end) { k.decode(*p, codes, start, begin, end, out); });
  return FUSEO1_OK;
}
