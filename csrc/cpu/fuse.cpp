// SPDX-License-Identifier: Apache-2.0
// The fuse op (include/fuseo1/fuse.h), block by block. Compiled once per instruction set with FUSEO1_ISA naming it.
#include "block.h"
#include "select.h"

namespace fuseo1 {
namespace {

// Which elements of a block the mask keeps: score > threshold, or equal to it and not past the last tie.
struct Selection {
  uint32_t threshold;
  int32_t last_tie;  // within the block; -1: before it

  template <int kTargets>
  FUSEO1_INLINE Mask mask(const Block& block, int targets, int j) const {
    const Vi v = (Vi)bits(variance_of<kTargets>(block, targets, j)), limit = (Vi)splat(threshold);
    const Mask ties = equal(v, limit) & greater((Vi)splat(static_cast<uint32_t>(last_tie + 1 - j)), load<Vi>(kLanes));
    return greater(v, limit) | ties;
  }
};

// a + b, made ready to be rounded once more to fewer bits: where fp32 cannot hold the sum it is rounded to odd (cut off
// towards zero, the last bit set). Rounding that to nearest even gives what rounding the exact sum would; rounding the
// nearest fp32 would not, next to a tie.
FUSEO1_INLINE Vf add_to_odd(Vf a, Vf b) {
  const Vf s = a + b;
  const Vf b_part = s - a;
  const Vf error = (a - (s - b_part)) + (b - b_part);     // exact (Knuth's TwoSum); NaN if s is not finite
  const Vu beyond_exact = (bits(s) ^ bits(error)) >> 31;  // 1: s lies further from zero than the exact sum
  return from_bits(select(not_equal(error, Vf{}), (bits(s) - beyond_exact) | 1u, bits(s)));
}

// One block to `out`; returns the largest magnitude written, as the output's bits.
template <class Out, int kTargets, bool kMasked>
uint32_t fuse_block(const fuseo1_fuse_params& params, const Block& block, Selection chosen, typename Out::Bits* out) {
  const int n = kTargets ? kTargets : params.targets;
  const Vf nothing = splat(-0.0f);  // x + -0.0 is x, for -0.0 too
  alignas(64) float deltas[kBlock];
  for (int j = 0; j < kBlock; j += kWidth) {
    const Vf s = sum_of<kTargets>(block, n, j);
    const Mask selected = kMasked ? chosen.mask<kTargets>(block, n, j) : Mask{};
    // Turning the signs over where s < 0 makes "has the elected sign" read "> 0".
    const Vu flip = select(greater_equal(s, Vf{}), Vu{}, splat(0x80000000u));
    Vf num = nothing, den{};
    for (int i = 0; i < n; ++i) {
      const Vf d = load<Vf>(block.d[i] + j), w = splat(params.weights[i]);
      Mask survives = greater(from_bits(bits(d) ^ flip), Vf{});
      if (kMasked) survives &= selected;
      num += select(survives, w * d, nothing);
      den += keep(survives, w);
    }
    const Vf floor = splat(params.floor_divisor);
    const Vf divisor = params.floor_divisor == 0.0f ? select(equal(den, Vf{}), splat(1.0f), den)
                                                    : select(greater(den, floor), den, floor);
    store(deltas + j, select(is_finite(s), num / divisor, splat(__builtin_nanf(""))));
  }
  // A loop of its own: the processor overlaps more of two short dependency chains than of one long one.
  Vu peak{};
  for (int j = 0; j < kBlock; j += kWidth) {
    const Vf b = load<Vf>(block.base + j), delta = load<Vf>(deltas + j);
    const Vf sum = Out::kNarrow ? add_to_odd(b, delta) : b + delta;
    const Vu result = select(equal(sum, sum), Out::round(sum), splat(Out::kNan));
    peak = max(peak, result & Out::kAbs);
    store_lanes(out + j, result);
  }
  return max_lane(peak);
}

// Copies past the caches: the lines of `to` are not read first.
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

template <class Out, int kTargets, bool kMasked>
int64_t fuse_blocks(const fuseo1_fuse_params& params, const Chunk& chunk, int64_t begin, int64_t end,
                    typename Out::Bits* out, bool stream) {
  Block block;
  alignas(64) typename Out::Bits result[kBlock];
  int64_t nonfinite = 0;
  for (int64_t at = begin; at < end; at += kBlock) {
    const int64_t count = end - at < kBlock ? end - at : kBlock;
    load_block<false>(chunk, at, count, &block, nullptr);
    const int64_t past = params.tie_limit - (chunk.offset + at);
    const Selection chosen = {params.threshold, static_cast<int32_t>(past < -1 ? -1 : past < kBlock ? past : kBlock)};
    if (fuse_block<Out, kTargets, kMasked>(params, block, chosen, result) >= Out::kInf) {
      nonfinite += count_nonfinite<Out>(result, count);
    }
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

template <class Out>
int64_t fuse_to(const fuseo1_fuse_params& params, const Chunk& chunk, int64_t begin, int64_t end, void* out,
                bool stream) {
  auto* to = static_cast<typename Out::Bits*>(out);
  int64_t nonfinite = 0;
  if (params.masked) {
    FUSEO1_UNROLL_TARGETS(chunk.targets,
                          nonfinite = (fuse_blocks<Out, kTargets, true>(params, chunk, begin, end, to, stream)))
  } else {
    FUSEO1_UNROLL_TARGETS(chunk.targets,
                          nonfinite = (fuse_blocks<Out, kTargets, false>(params, chunk, begin, end, to, stream)))
  }
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
