// SPDX-License-Identifier: Apache-2.0
// fuse's C ABI: checks the arguments, spreads the segments over threads.
#include <atomic>
#include <new>

#include "dispatch.h"
#include "fuseo1/fuse.h"
#include "parallel.h"

namespace {

// From here on the output is written past the caches. A smaller one is likely to be read again soon, by a write().
constexpr int64_t kStreamBytes = 8 << 20;

}  // namespace

extern "C" int fuseo1_fuse(const fuseo1_fuse_params* params, const fuseo1_operand* operands, int64_t offset,
                           int64_t count, void* out, int32_t out_dtype, int32_t threads, int64_t* nonfinite) {
  using namespace fuseo1;
  if (!params || !params->weights || !nonfinite || !valid(operands, params->targets, offset, count, threads) ||
      out_dtype < FUSEO1_BF16 || out_dtype > FUSEO1_FP32 || (!out && count)) {
    return FUSEO1_BAD_ARGUMENT;
  }
  const Kernels& k = kernels();
  const Chunk chunk = {operands, params->targets, offset};
  const bool stream = count * element_size(out_dtype) >= kStreamBytes;
  std::atomic<int64_t> found{0};
  try {
    for_each_segment(offset, count, threads, [&](int, int64_t begin, int64_t end) {
      found += k.fuse(*params, chunk, begin, end, out, out_dtype, stream);
    });
  } catch (const std::bad_alloc&) {
    return FUSEO1_OUT_OF_MEMORY;
  }
  *nonfinite = found;
  return FUSEO1_OK;
}
