// SPDX-License-Identifier: Apache-2.0
// The surveys that only sum, norms, overlaps and Gram matrices (include/fuseo1/survey.h), block by block. Compiled once
// per instruction set with FUSEO1_ISA naming it.
#include "nonfinite.h"
#include "quanta.h"
#include "select.h"

namespace fuseo1 {
namespace {

// E of a block's values (quanta.h).
uint32_t exponent_of_block(const float* values) {
  Vu peak{};
  for (int j = 0; j < kBlock; j += kWidth) peak = max(peak, magnitude(load<Vf>(values + j)));
  return exponent_of(max_lane(peak));
}

// rint(|x| * scale), plus kRintMagicBits.
FUSEO1_INLINE Vu quantize(Vf x, Vf scale) { return bits(from_bits(magnitude(x)) * scale + splat(kRintMagic)); }

int64_t sum_magnitudes(const float* values, uint32_t exponent) {
  const Vf scale = scale_of(exponent);
  Vu sum{};
  for (int j = 0; j < kBlock; j += kWidth) sum += quantize(load<Vf>(values + j), scale);
  return sum_lanes(sum) - kBlock * kRintMagicBits;
}

// The sum with signs; that of half a block fits into 32 bits.
int64_t sum_signed(const float* values, uint32_t exponent) {
  const Vf scale = scale_of(exponent);
  int64_t sum = 0;
  for (int half = 0; half < kBlock; half += kBlock / 2) {
    Vu lanes{};
    for (int j = half; j < half + kBlock / 2; j += kWidth) {
      const Vf x = load<Vf>(values + j);
      const Vu sign = (Vu)((Vi)bits(x) >> 31);  // all ones: negative
      lanes += ((quantize(x, scale) - kRintMagicBits) ^ sign) - sign;
    }
    sum += static_cast<int32_t>(sum_lanes(lanes));
  }
  return sum;
}

// Adds |d| of all elements and of the drawn ones, whose bits go to `kept` unless it is nullptr.
void sum_drawn(const fuseo1_select& select, int64_t flat, const float* d, uint32_t exponent, uint64_t* kept,
               int64_t* all, int64_t* drawn) {
  const Vf scale = scale_of(exponent);
  Vu of_all{}, of_drawn{};
  uint64_t words[kBlock / 64] = {};  // with stores within the loop GCC 12 would make two loops of it
  for_each_drawn(select, flat, [&](int j, Mask is_drawn) {
    const Vu t = quantize(load<Vf>(d + j), scale) - kRintMagicBits;
    of_all += t;
    of_drawn = add(is_drawn, of_drawn, t);
    words[j / 64] |= uint64_t{lane_bits(is_drawn)} << (j % 64);
  });
  if (kept) memcpy(kept, words, sizeof words);
  *all += sum_lanes(of_all), *drawn += sum_lanes(of_drawn);
}

void norms_run(const Chunk& chunk, int64_t begin, int64_t end, const fuseo1_select* selects, uint64_t* const* kept,
               SumBins* sums, int64_t* nonfinite) {
  Block block;
  for (int64_t at = begin; at < end; at += kBlock) {
    const int64_t count = end - at < kBlock ? end - at : kBlock, flat = chunk.offset + at;
    load_finite(chunk, at, count, &block, nonfinite);
    for (int i = 0; i < chunk.targets; ++i) {
      float* const d = block.d[i];
      const uint32_t exponent = exponent_of_block(d);
      int64_t *const all = &sums[2 * i][exponent], *const selected = &sums[2 * i + 1][exponent];
      const int kind = selects ? selects[i].kind : FUSEO1_SELECT_ALL;
      if (kind == FUSEO1_SELECT_DRAW) {
        uint64_t* const bits = kept[i] ? kept[i] + flat / 64 : nullptr;
        sum_drawn(selects[i], flat, d, exponent, bits, all, selected);
        continue;
      }
      const int64_t sum = sum_magnitudes(d, exponent);
      *all += sum;
      if (kind == FUSEO1_SELECT_ALL || kind == FUSEO1_SELECT_CLAMP) {
        *selected += sum;
      } else {
        apply_select(selects[i], flat, at, count, d);
        *selected += sum_magnitudes(d, exponent);
      }
    }
  }
}

// --- overlaps ---

// The bits of the numbers that are not 0, of 64.
uint64_t nonzero_bits(const float* values) {
  uint64_t bits = 0;
  for (int j = 0; j < 64; j += kWidth) bits |= uint64_t{lane_bits(not_equal(load<Vf>(values + j), Vf{}))} << j;
  return bits;
}

void overlaps_run(const Chunk& chunk, int64_t begin, int64_t end, const fuseo1_select* selects, uint64_t* const*,
                  SumBins* sums, int64_t* nonfinite) {
  Block block;
  for (int64_t at = begin; at < end; at += kBlock) {
    const int64_t count = end - at < kBlock ? end - at : kBlock, flat = chunk.offset + at;
    load_finite(chunk, at, count, &block, nonfinite);
    for (int i = 0; selects && i < chunk.targets; ++i) apply_select(selects[i], flat, at, count, block.d[i]);
    for (int j = 0; j < kBlock; j += 64) {
      uint64_t has[FUSEO1_MAX_TARGETS], any = 0, several = 0;
      for (int i = 0; i < chunk.targets; ++i) {
        has[i] = nonzero_bits(block.d[i] + j);
        several |= any & has[i];
        any |= has[i];
      }
      for (int i = 0; i < chunk.targets; ++i) {
        sums[2 * i][kUnits] += __builtin_popcountll(has[i] & several);
        sums[2 * i + 1][kUnits] += __builtin_popcountll(has[i] & ~several);
      }
    }
  }
}

// --- Gram matrices ---

using Vector = float[kBlock];

// The operands themselves, widened.
void load_inputs(const Chunk& chunk, int64_t at, int64_t count, Vector* inputs) {
  for (int i = 0; i <= chunk.targets; ++i) {
    switch (chunk.operands[i].dtype) {
      case FUSEO1_BF16:
        load_base<Bf16>(chunk.operands[i], at, count, inputs[i]);
        break;
      case FUSEO1_FP16:
        load_base<Fp16>(chunk.operands[i], at, count, inputs[i]);
        break;
      default:
        load_base<Fp32>(chunk.operands[i], at, count, inputs[i]);
    }
  }
}

// Clamps values so that their products are finite.
void clamp_products(int vectors, Vector* values) {
  for (int i = 0; i < vectors; ++i) {
    for (int j = 0; j < kBlock; j += kWidth) store(values[i] + j, squarable(load<Vf>(values[i] + j)));
  }
}

// Adds the products of all pairs: of each vector i with vectors 0 .. i.
void add_products(int vectors, const Vector* values, SumBins* sums) {
  alignas(64) float products[kBlock];
  for (int i = 0; i < vectors; ++i) {
    for (int k = 0; k <= i; ++k, ++sums) {
      for (int j = 0; j < kBlock; j += kWidth) {
        store(products + j, load<Vf>(values[i] + j) * load<Vf>(values[k] + j));
      }
      const uint32_t exponent = exponent_of_block(products);
      (*sums)[exponent] += sum_signed(products, exponent);
    }
  }
}

void gram_run(const Chunk& chunk, int64_t begin, int64_t end, bool of_inputs, SumBins* sums, int64_t* nonfinite) {
  Block block;
  alignas(64) Vector inputs[FUSEO1_MAX_TARGETS + 1];
  uint32_t peaks[FUSEO1_MAX_TARGETS];
  for (int64_t at = begin; at < end; at += kBlock) {
    const int64_t count = end - at < kBlock ? end - at : kBlock;
    load_block<true>(chunk, at, count, &block, peaks);
    const bool rare = any_nonfinite(chunk.targets, peaks);
    if (of_inputs) {
      load_inputs(chunk, at, count, inputs);
      if (rare) {
        for_each_nonfinite(chunk, at, count, block, nonfinite, [&](int64_t j) {
          for (int i = 0; i <= chunk.targets; ++i) inputs[i][j] = 0.0f;
        });
      }
      clamp_products(chunk.targets + 1, inputs);
      add_products(chunk.targets + 1, inputs, sums);
    } else {
      if (rare) {
        sanitize(chunk, at, count, &block, nonfinite);
        clamp_products(chunk.targets, block.d);
      }
      add_products(chunk.targets, block.d, sums);
    }
  }
}

}  // namespace

extern const SumKernels FUSEO1_JOIN(sums_, FUSEO1_ISA) = {norms_run, overlaps_run, gram_run};

}  // namespace fuseo1
