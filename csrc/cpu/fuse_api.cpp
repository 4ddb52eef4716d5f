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

bool valid_select(const fuseo1_select& select, int64_t count) {
  return select.kind >= FUSEO1_SELECT_ALL && select.kind <= FUSEO1_SELECT_CLAMP &&
         (select.kind != FUSEO1_SELECT_BITS || select.bits || !count) &&
         (select.kind != FUSEO1_SELECT_CLAMP || select.most >= 0);
}

bool valid_params(const fuseo1_fuse_params& params, int64_t count) {
  if (params.targets < 0 || params.targets > FUSEO1_MAX_TARGETS || (!params.weights && params.targets)) return false;
  if (params.elect < FUSEO1_ELECT_SUM || params.elect > FUSEO1_ELECT_NONE) return false;
  for (int i = 0; params.selects && i < params.targets; ++i) {
    if (!valid_select(params.selects[i], count)) return false;
  }
  return true;
}

}  // namespace

extern "C" int fuseo1_fuse(const fuseo1_fuse_params* params, const fuseo1_operand* operands, int64_t offset,
                           int64_t count, void* out, int32_t out_dtype, int32_t threads, int64_t* nonfinite) {
  using namespace fuseo1;
  if (!params || !valid_params(*params, count) || !nonfinite ||
      !valid(operands, params->targets, offset, count, threads) || out_dtype < FUSEO1_BF16 || out_dtype > FUSEO1_FP32 ||
      (!out && count)) {
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
