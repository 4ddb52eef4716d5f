// SPDX-License-Identifier: Apache-2.0
// Launches the kernels that decide selections, and lays out their memory (include/fuseo1/cuda.h).
#include "decide.cuh"
#include "launch.cuh"
#include "one_target.cuh"
#include "ranked.cuh"
#include "steps.cuh"

namespace fuseo1 {
namespace {

// Sets the bit of each element that is in `keep` and not in `drop`; a lane writes a byte.
template <class In>
__global__ void __launch_bounds__(kThreads, 1)
    decide_band(const __grid_constant__ OneTarget in, fuseo1_cut keep, fuseo1_cut drop, int64_t offset, uint8_t* bits) {
  for_each_block(in.numel, [&](int64_t at, int count) {
    if (count <= 0) return;
    const int64_t flat = offset + at;
    uint32_t scores[kLane];
    load_magnitudes<In>(in, false, at, flat, count, scores);
    const uint32_t kept = cut_mask(scores, flat, keep.threshold, keep.tie_limit);
    bits[at / kLane] = static_cast<uint8_t>(kept & ~cut_mask(scores, flat, drop.threshold, drop.tie_limit));
  });
}

// Most bytes of the rows that are sorted at the same time, unless a single one takes more: about an L2 cache.
constexpr int64_t kRankBytes = 64 << 20;
constexpr int64_t kRankBytesAnElement = 2 * sizeof(uint64_t);

bool is_ranked(const fuseo1_select& select) { return select.kind == FUSEO1_SELECT_RANKED; }

bool is_decided(const fuseo1_select& select) {
  return is_ranked(select) || (select.kind == FUSEO1_SELECT_BAND && select.rows.factors);
}

int64_t rows_at_once(const fuseo1_select& select, int64_t numel) {
  return std::max<int64_t>(std::min(numel / select.row, kRankBytes / (kRankBytesAnElement * select.row)), 1);
}

int64_t bits_bytes(int64_t numel) { return round_up((numel + 63) / 64 * 8); }

// Sets the bits, which are 0, of target i.
int decide_one(const Inputs& in, int i, const fuseo1_select& select, int64_t offset, uint64_t* rooms, void* bits,
               void* stream) {
  if (is_ranked(select)) {
    const RankRule rule = {i + 1, select.key, select.row, offset, select.low, select.span};
    return launch("rank_rows", in, rank_rows, rows_at_once(select, in.numel) * kWarps, stream, in, rule, rooms,
                  static_cast<uint32_t*>(bits));
  }
  const OneTarget one = {in, i + 1, nullptr, select.rows};
  const bool bf16 = in.operands[0].dtype == FUSEO1_BF16 && in.operands[i + 1].dtype == FUSEO1_BF16;
  return launch("decide_band", in, bf16 ? decide_band<AllBf16> : decide_band<Mixed>, blocks_of(in), stream, one,
                select.keep, select.drop, offset, static_cast<uint8_t*>(bits));
}

}  // namespace

int64_t deciding_bytes(const fuseo1_select* selects, int32_t targets, int64_t numel) {
  int64_t bits = 0, rooms = 0;
  for (int i = 0; selects && numel && i < targets; ++i) {
    if (!is_decided(selects[i])) continue;
    bits += bits_bytes(numel);
    if (is_ranked(selects[i])) rooms = rows_at_once(selects[i], numel) * selects[i].row * kRankBytesAnElement;
  }
  return bits + rooms;
}

int decide(const Inputs& in, int64_t offset, Selects* selects, void* room, size_t bytes, void* stream) {
  const int64_t needed = deciding_bytes(selects->of, in.targets, in.numel), each = bits_bytes(in.numel);
  if (needed == 0) return FUSEO1_OK;
  if (!room || static_cast<int64_t>(bytes) < needed) return FUSEO1_BAD_ARGUMENT;
  char* bits = static_cast<char*>(room);
  int count = 0;
  for (int i = 0; i < in.targets; ++i) count += is_decided(selects->of[i]);
  auto* const rooms = reinterpret_cast<uint64_t*>(bits + count * each);
  int status = clear(bits, static_cast<size_t>(count * each), in, stream);
  for (int i = 0; i < in.targets && !status; ++i) {
    fuseo1_select& select = selects->of[i];
    if (!is_decided(select)) continue;
    status = decide_one(in, i, select, offset, rooms, bits, stream);
    select.kind = FUSEO1_SELECT_BITS;
    select.bits = reinterpret_cast<const uint64_t*>(bits);
    bits += each;
  }
  return status;
}

}  // namespace fuseo1

using namespace fuseo1;

extern "C" int fuseo1_cuda_deciding_bytes(const fuseo1_select* selects, int32_t targets, int64_t numel, size_t* bytes) {
  Selects taken = {};
  if (targets < 0 || targets > FUSEO1_CUDA_MAX_TARGETS || numel < 0 || !bytes ||
      !taken.copy(selects, targets, 0, numel)) {
    return FUSEO1_BAD_ARGUMENT;
  }
  *bytes = static_cast<size_t>(deciding_bytes(taken.of, targets, numel));
  return FUSEO1_OK;
}
