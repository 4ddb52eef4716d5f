// SPDX-License-Identifier: Apache-2.0
// fuse's C ABI: checks arguments and spreads the segments over threads.
#include <atomic>
#include <new>

#include "fuseo1/fuse.h"
#include "ranked_selects.h"

namespace {

// Outputs of at least this size bypass the caches. Smaller ones are likely to be read again soon, by a write().
constexpr int64_t kStreamBytes = 8 << 20;

// `row`: ranked_row's.
bool valid_select(const fuseo1_select& select, int64_t row, int64_t count) {
  return select.kind >= FUSEO1_SELECT_ALL && select.kind <= FUSEO1_SELECT_RANKED &&
         (select.kind != FUSEO1_SELECT_BAND || !select.rows.factors || select.rows.row >= 1) &&
         (select.kind != FUSEO1_SELECT_BITS || select.bits || !count) &&
         (select.kind != FUSEO1_SELECT_CLAMP || select.most >= 0) &&
         (select.kind != FUSEO1_SELECT_RANKED || fuseo1::valid_ranked(select, row));
}

bool valid_params(const fuseo1_fuse_params& params, int64_t offset, int64_t count) {
  if (params.targets < 0 || params.targets > FUSEO1_MAX_TARGETS || (!params.weights && params.targets)) return false;
  if (params.elect < FUSEO1_ELECT_SUM || params.elect > FUSEO1_ELECT_NONE) return false;
  const int64_t row = fuseo1::ranked_row(params.selects, params.targets);
  for (int i = 0; params.selects && i < params.targets; ++i) {
    if (!valid_select(params.selects[i], row, count)) return false;
  }
  return !row || (offset % row == 0 && count % row == 0);
}

}  // namespace

extern "C" int fuseo1_fuse(const fuseo1_fuse_params* params, const fuseo1_operand* operands, int64_t offset,
                           int64_t count, void* out, int32_t out_dtype, int32_t threads, int64_t* nonfinite) {
  using namespace fuseo1;
  if (!params || !valid_params(*params, offset, count) || !nonfinite ||
      !valid(operands, params->targets, offset, count, threads) || out_dtype < FUSEO1_BF16 || out_dtype > FUSEO1_FP32 ||
      (!out && count)) {
    return FUSEO1_BAD_ARGUMENT;
  }
  const Kernels& k = kernels();
  const Chunk chunk = {operands, params->targets, offset};
  const bool stream = count * element_size(out_dtype) >= kStreamBytes;
  std::atomic<int64_t> found{0};
  try {
    RankedSelects ranked(params->selects, params->targets);
    ranked.make_rooms(std::min<int64_t>(threads, segments_of(offset, count, ranked.segment())));
    const auto fuse = [&](int thread, int64_t begin, int64_t end) {
      if (!ranked.any()) {
        found += k.fuse(*params, chunk, begin, end, out, out_dtype, stream);
        return;
      }
      fuseo1_fuse_params decided = *params;
      ranked.for_each_unit(chunk, begin, end, thread, nullptr,
                           [&](const Chunk& part, const fuseo1_select* selects, int64_t at, int64_t n) {
                             decided.selects = selects;
                             char* const to = static_cast<char*>(out) + at * element_size(out_dtype);
                             found += k.fuse(decided, part, 0, n, to, out_dtype, stream);
                           });
    };
    for_each_segment(offset, count, threads, fuse, ranked.segment());
  } catch (const std::bad_alloc&) {
    return FUSEO1_OUT_OF_MEMORY;
  }
  *nonfinite = found;
  return FUSEO1_OK;
}
