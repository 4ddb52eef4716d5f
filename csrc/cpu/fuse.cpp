// SPDX-License-Identifier: Apache-2.0
// The fuse op (include/fuseo1/fuse.h), block by block. Compiled once per instruction set with FUSEO1_ISA naming it.
#include "block.h"
#include "select.h"

namespace fuseo1 {
namespace {

// The lanes of a block that are selected by their score; `cut` tells which are.
template <int kTargets>
void choose(const Block& block, int targets, const BlockCut& cut, Mask* chosen) {
  for (int j = 0; j < kBlock; j += kWidth) {
    chosen[j / kWidth] = greater((Vi)bits(variance_of<kTargets>(block, targets, j)), cut.limit(j));
  }
}

// What is added to a block's bases, `scale` included; block.d is z, `chosen` nullptr: every element is selected.
//
// Where nobody survives that is -0.0. A sum of nothing, -0.0, stays that whatever it is divided and multiplied by,
// unless that is negative; the instance for any number of targets minds that too.
template <int kElect, int kTargets>
void sum_survivors(const fuseo1_fuse_params& params, const Block& block, const Mask* chosen, float* __restrict deltas) {
  constexpr bool kMindSigns = kTargets == 0;
  const int n = kTargets ? kTargets : params.targets;
  const float *weights = params.weights, *shares = params.shares ? params.shares : params.weights;
  const bool fixed = params.divisor != 0.0f, floored = params.floor_divisor != 0.0f;
  const Vf divisor = splat(params.divisor), floor = splat(params.floor_divisor), scale = splat(params.scale);
  const Vf nothing = splat(-0.0f);  // x + -0.0 is x, for -0.0 too
  for (int j = 0; j < kBlock; j += kWidth) {
    const auto weighed = [&](int i) { return splat(weights[i]) * load<Vf>(block.d[i] + j); };
    Vf s{};
    Mask finite = ~Mask{};
    if (kElect == FUSEO1_ELECT_SUM) s = sum_of<kTargets>(block, n, j);
    if (kElect == FUSEO1_ELECT_WEIGHTED) {
      s = weighed(0);
      for (int i = 1; i < n; ++i) s += weighed(i);
    }
    if (kElect == FUSEO1_ELECT_COUNT) {
      for (int i = 0; i < n; ++i) {
        const Vf t = weighed(i), one = from_bits(bits(splat(1.0f)) | (bits(t) & 0x80000000u));
        s += keep(not_equal(t, Vf{}), one);
        finite &= is_finite(t);
      }
    }
    // Turning the signs over where s < 0 makes "has the elected sign" read "> 0".
    const Vu flip = select(greater_equal(s, Vf{}), Vu{}, splat(0x80000000u));
    Vf num = nothing, den{};
    Mask any{};
    for (int i = 0; i < n; ++i) {
      const Vf t = weighed(i), share = splat(shares[i]);
      if (kElect == FUSEO1_ELECT_NONE) {
        const Mask zero = equal(t, Vf{});  // NaN is not, and shows in the sum
        num += select(zero, nothing, t);
        den += select(zero, Vf{}, share);
        if (kMindSigns) any |= ~zero;
      } else {
        const Vf voter = kElect == FUSEO1_ELECT_SUM ? load<Vf>(block.d[i] + j) : t;
        const Mask survives = greater(from_bits(bits(voter) ^ flip), Vf{});
        num += select(survives, t, nothing);
        den += keep(survives, share);
        if (kMindSigns) any |= survives;
      }
    }
    if (kElect == FUSEO1_ELECT_NONE) s = num;
    if (kElect != FUSEO1_ELECT_COUNT) finite = is_finite(s);
    if (chosen) {
      num = select(chosen[j / kWidth], num, nothing);
      den = keep(chosen[j / kWidth], den);
      if (kMindSigns) any &= chosen[j / kWidth];
    }
    const Vf by = fixed     ? divisor
                  : floored ? select(greater(den, floor), den, floor)
                            : select(equal(den, Vf{}), splat(1.0f), den);
    Vf delta = scale * (num / by);
    if (kMindSigns) delta = select(any, delta, nothing);
    store(deltas + j, select(finite, delta, splat(__builtin_nanf(""))));
  }
}

using SumSurvivors = void (*)(const fuseo1_fuse_params&, const Block&, const Mask*, float*);

template <int kElect>
SumSurvivors sum_survivors_of(const fuseo1_fuse_params& params) {
  const bool signs =
      __builtin_signbit(params.scale) || __builtin_signbit(params.divisor) || __builtin_signbit(params.floor_divisor);
  SumSurvivors f = nullptr;
  FUSEO1_UNROLL_TARGETS(signs ? 0 : params.targets, (f = sum_survivors<kElect, kTargets>))
  return f;
}

SumSurvivors sum_survivors_by(const fuseo1_fuse_params& params) {
  switch (params.elect) {
    case FUSEO1_ELECT_SUM:
      return sum_survivors_of<FUSEO1_ELECT_SUM>(params);
    case FUSEO1_ELECT_WEIGHTED:
      return sum_survivors_of<FUSEO1_ELECT_WEIGHTED>(params);
    case FUSEO1_ELECT_COUNT:
      return sum_survivors_of<FUSEO1_ELECT_COUNT>(params);
    default:
      return sum_survivors_of<FUSEO1_ELECT_NONE>(params);
  }
}

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

// Bases and deltas of one block to `out`; returns the largest magnitude written, as the output's bits. A loop of its
// own: the processor overlaps more of two short dependency chains than of one long one.
template <class Out>
uint32_t add_and_round(const float* bases, float base_scale, const float* deltas, typename Out::Bits* out) {
  Vu peak{};
  for (int j = 0; j < kBlock; j += kWidth) {
    const Vf b = splat(base_scale) * load<Vf>(bases + j), delta = load<Vf>(deltas + j);
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

template <class Out>
int64_t fuse_to(const fuseo1_fuse_params& params, const Chunk& chunk, int64_t begin, int64_t end, void* to,
                bool stream) {
  auto* out = static_cast<typename Out::Bits*>(to);
  const SumSurvivors sum = sum_survivors_by(params);
  Block block;
  alignas(64) Mask selected[kBlock / kWidth];
  alignas(64) float deltas[kBlock];
  for (float& delta : deltas) delta = -0.0f;  // what they stay without targets
  alignas(64) typename Out::Bits result[kBlock];
  int64_t nonfinite = 0;
  for (int64_t at = begin; at < end; at += kBlock) {
    const int64_t count = end - at < kBlock ? end - at : kBlock, flat = chunk.offset + at;
    load_block<false>(chunk, at, count, &block, nullptr);
    if (params.masked) {
      const BlockCut cut({params.threshold, params.tie_limit}, flat);
      FUSEO1_UNROLL_TARGETS(chunk.targets, choose<kTargets>(block, chunk.targets, cut, selected))
    }
    for (int i = 0; params.selects && i < chunk.targets; ++i) {
      apply_select(params.selects[i], flat, at, count, block.d[i]);
    }
    if (chunk.targets) sum(params, block, params.masked ? selected : nullptr, deltas);
    if (add_and_round<Out>(block.base, params.base_scale, deltas, result) >= Out::kInf) {
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
