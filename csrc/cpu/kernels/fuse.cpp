// SPDX-License-Identifier: Apache-2.0
// The fuse op (include/fuseo1/fuse.h), block by block. Compiled once per instruction set with FUSEO1_ISA naming it.
#include "block.h"
#include "merge_block.h"
#include "select.h"

namespace fuseo1 {
namespace {

// The mask of a block's elements whose score is in `cut`.
template <int kTargets>
void choose(const Block& block, int targets, const BlockCut& cut, Mask* chosen) {
  for (int j = 0; j < kBlock; j += kWidth) {
    chosen[j / kWidth] = greater((Vi)bits(variance_of<kTargets>(block, targets, j)), cut.limit(j));
  }
}

// Writes a merged block, which is rounded to odd if Out is narrower than fp32, to `out`; returns the largest magnitude
// written, as the output's bits.
template <class Out>
uint32_t round_block(const float* merged, typename Out::Bits* out) {
  Vu peak{};
  for (int j = 0; j < kBlock; j += kWidth) {
    const Vf x = load<Vf>(merged + j);
    const Vu result = select(equal(x, x), Out::round(x), splat(Out::kNan));
    peak = max(peak, result & Out::kAbs);
    store_lanes(out + j, result);
  }
  return max_lane(peak);
}

// Copies past the caches, so that the lines of `to` are not read first.
void stream_copy(void* to, const void* from, size_t bytes) {
#if defined(__x86_64__)
  char* dst = static_cast<char*>(to);
  const char* src = static_cast<const char*>(from);
  const size_t head = (64 - reinterpret_cast<uintptr_t>(dst) % 64) % 64;
  if (bytes >= head + 64) {
    memcpy(dst, src, head);
    dst += head, src += head, bytes -= head;
    for (; bytes >= 64; dst += 64, src += 64, bytes -= 64) {
      for (int k = 0; k < 64; k += 16)
        _mm_stream_si128((__m128i*)(dst + k), _mm_loadu_si128((const __m128i*)(src + k)));
    }
  }
  memcpy(dst, src, bytes);
#else
  memcpy(to, from, bytes);
#endif
}

template <class Out>
int64_t count_nonfinite(const typename Out::Bits* out, int64_t count) {
  int64_t n = 0;
  for (int64_t j = 0; j < count; ++j) n += (out[j] & Out::kAbs) >= Out::kInf;
  return n;
}

template <class Out>
int64_t fuse_to(const fuseo1_fuse_params& params, const Chunk& chunk, int64_t begin, int64_t end, void* to,
                bool stream) {
  auto* out = static_cast<typename Out::Bits*>(to);
  const Merge merge(params, Out::kNarrow);
  Block block;
  alignas(64) float merged[kBlock];
  alignas(64) Mask chosen[kBlock / kWidth];
  alignas(64) typename Out::Bits result[kBlock];
  int64_t nonfinite = 0;
  for (int64_t at = begin; at < end; at += kBlock) {
    const int64_t count = end - at < kBlock ? end - at : kBlock, flat = chunk.offset + at;
    load_block<false>(chunk, at, count, &block, nullptr);
    if (params.masked && chunk.targets) {
      const BlockCut cut({params.threshold, params.tie_limit}, flat);
      FUSEO1_UNROLL_TARGETS(chunk.targets, choose<kTargets>(block, chunk.targets, cut, chosen))
    }
    for (int i = 0; params.selects && i < chunk.targets; ++i) {
      apply_select(params.selects[i], flat, at, count, block.d[i]);
    }
    merge(block, params.masked && chunk.targets ? chosen : nullptr, merged);
    if (round_block<Out>(merged, result) >= Out::kInf) nonfinite += count_nonfinite<Out>(result, count);
    const size_t bytes = static_cast<size_t>(count) * sizeof *out;
    if (stream) {
      stream_copy(out + at, result, bytes);
    } else {
      memcpy(out + at, result, bytes);
    }
  }
#if defined(__x86_64__)
  if (stream) _mm_sfence();
#endif
  return nonfinite;
}

int64_t fuse_run(const fuseo1_fuse_params& params, const Chunk& chunk, int64_t begin, int64_t end, void* out,
                 int32_t out_dtype, bool stream) {
  switch (out_dtype) {
    case FUSEO1_BF16:
      return fuse_to<Bf16>(params, chunk, begin, end, out, stream);
    case FUSEO1_FP16:
      return fuse_to<Fp16>(params, chunk, begin, end, out, stream);
    default:
      return fuse_to<Fp32>(params, chunk, begin, end, out, stream);
  }
}

}  // namespace

extern const decltype(Kernels::fuse) FUSEO1_JOIN(fuse_, FUSEO1_ISA) = fuse_run;

}  // namespace fuseo1
