// SPDX-License-Identifier: Apache-2.0
// The fuse op (include/fuseo1/fuse.h), block by block. Compiled once per instruction set with FUSEO1_ISA naming it.
#include <type_traits>

#include "exact.h"
#include "filtered.h"
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

// Merges blocks to `Out`: by the filter where there is one, exactly where that leaves a result open.
template <class Out>
class Merge {
 public:
  using Bits = typename Out::Bits;

  explicit Merge(const fuseo1_fuse_params& params) : params_(params), exactly_(exact_for(params)), filter_(params) {
    if constexpr (Out::kNarrow) filtered_ = filter_.usable ? filtered_for<Out>(params) : nullptr;
  }

  // The block's d are z; `chosen` nullptr: every element is selected by score. Returns whether results may not be
  // finite.
  bool operator()(const Block& block, const Mask* chosen, Bits* out) {
    if constexpr (Out::kNarrow) {
      if (filtered_ && exact_blocks_ == 0) {
        uint64_t open[kBlock / 64];
        const int count = filtered_(filter_, block, chosen, out, open);
        if (count <= kMostOpen) {
          return count && merge_open(block, chosen, open, out) >= Out::kInf;
        }
        exact_blocks_ = kExactBlocks;
      } else if (exact_blocks_) {
        --exact_blocks_;
      }
    }
    return merge_first(block, chosen, kBlock, out) >= Out::kInf;
  }

 private:
  // With more open elements than this it is faster to merge all exactly, in this block and in those that follow. With
  // eight lanes of fp64 that is soon so.
  static constexpr int kMostOpen = kWidth == 16 ? kBlock / 16 : kBlock * 3 / 8, kExactBlocks = 15;

  // Merges the elements that have a bit, side by side; returns the largest magnitude, as the output's bits.
  uint32_t merge_open(const Block& block, const Mask* chosen, const uint64_t* open, Bits* out) {
    int count = 0;
    uint8_t places[kBlock];
    for (int i = 0; i < kBlock / 64; ++i) {
      for (uint64_t rest = open[i]; rest; rest &= rest - 1) {
        places[count++] = static_cast<uint8_t>(64 * i + __builtin_ctzll(rest));
      }
    }
    const int padded = (count + kWidth - 1) / kWidth * kWidth;
    const auto gather = [&](const float* from, float* to) {
      for (int k = 0; k < count; ++k) to[k] = from[places[k]];
      for (int k = count; k < padded; ++k) to[k] = 0.0f;
    };
    gather(block.base, side_by_side_.base);
    for (int i = 0; i < params_.targets; ++i) gather(block.d[i], side_by_side_.d[i]);
    for (int k = 0; chosen && k < count; ++k) {
      if (lane_bits(chosen[places[k] / kWidth]) >> places[k] % kWidth & 1) continue;
      for (int i = 0; i < params_.targets; ++i) side_by_side_.d[i][k] = 0.0f;  // which does not survive either
    }
    alignas(64) Bits merged[kBlock];
    const uint32_t peak = merge_first(side_by_side_, nullptr, padded, merged);
    for (int k = 0; k < count; ++k) out[places[k]] = merged[k];
    return peak;
  }

  // Merges the first elements of a block exactly; returns the largest magnitude, as the output's bits.
  uint32_t merge_first(const Block& block, const Mask* chosen, int count, Bits* out) {
    alignas(64) float merged[kBlock];
    exactly_(params_, Out::kNarrow, block, chosen, count, merged);
    Vu peak{};
    for (int j = 0; j < count; j += kWidth) {
      const Vf x = load<Vf>(merged + j);
      const Vu result = select(equal(x, x), Out::round(x), splat(Out::kNan));
      peak = max(peak, result & Out::kAbs);
      store_lanes(out + j, result);
    }
    return max_lane(peak);
  }

  const fuseo1_fuse_params& params_;
  MergeExactly* exactly_;
  Filter filter_;
  std::conditional_t<Out::kNarrow, MergeFiltered<Out>*, const void*> filtered_ = nullptr;
  int exact_blocks_ = 0;
  Block side_by_side_;
};

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
  Merge<Out> merge(params);
  Block block;
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
    const bool all = !params.masked || !chunk.targets;
    if (merge(block, all ? nullptr : chosen, result)) nonfinite += count_nonfinite<Out>(result, count);
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
