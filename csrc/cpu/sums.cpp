// SPDX-License-Identifier: Apache-2.0
// The surveys that are nothing but sums, norms and Gram matrices (include/fuseo1/survey.h), block by block. Compiled
// once per instruction set with FUSEO1_ISA naming it.
#include "nonfinite.h"
#include "quanta.h"
#include "select.h"

namespace fuseo1 {
namespace {

// The quantum's exponent of a block's values.
uint32_t exponent_of_block(const float* values) {
  Vu peak{};
  for (int j = 0; j < kBlock; j += kWidth) peak = max(peak, magnitude(load<Vf>(values + j)));
  return exponent_of(max_lane(peak));
}

// rint(|x| * scale), above the magic number's bits.
FUSEO1_INLINE Vu quantize(Vf x, Vf scale) { return bits(from_bits(magnitude(x)) * scale + splat(kRintMagic)); }

int64_t sum_magnitudes(const float* values, uint32_t exponent) {
  const Vf scale = scale_of(exponent);
  Vu sum{};
  for (int j = 0; j < kBlock; j += kWidth) sum += quantize(load<Vf>(values + j), scale);
  return sum_lanes(sum) - kBlock * kRintMagicBits;
}

// With their signs; half a block's sum fits into 32 bits.
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

void norms_run(const Chunk& chunk, int64_t begin, int64_t end, const fuseo1_select* selects, uint64_t* const* kept,
               SumBins* sums, int64_t* nonfinite) {
  Block block;
  for (int64_t at = begin; at < end; at += kBlock) {
    const int64_t count = end - at < kBlock ? end - at : kBlock, flat = chunk.offset + at;
    load_finite(chunk, at, count, &block, nonfinite);
    for (int i = 0; i < chunk.targets; ++i) {
      float* const d = block.d[i];
      const uint32_t exponent = exponent_of_block(d);
      const int64_t all = sum_magnitudes(d, exponent);
      sums[2 * i][exponent] += all;
      if (selects && selects[i].kind != FUSEO1_SELECT_ALL && selects[i].kind != FUSEO1_SELECT_CLAMP) {
        if (kept[i] && selects[i].kind == FUSEO1_SELECT_DRAW) {
          apply_draw(selects[i], flat, reinterpret_cast<uint8_t*>(kept[i]) + flat / 8, d);
        } else {
          apply_select(selects[i], flat, at, count, d);
        }
        sums[2 * i + 1][exponent] += sum_magnitudes(d, exponent);
      } else {
        sums[2 * i + 1][exponent] += all;
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

// Brings values to where their products are finite.
void clamp_products(int vectors, Vector* values) {
  for (int i = 0; i < vectors; ++i) {
    for (int j = 0; j < kBlock; j += kWidth) store(values[i] + j, squarable(load<Vf>(values[i] + j)));
  }
}

// Adds the products of all pairs, of vector i and all up to itself in turn.
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

extern const SumKernels FUSEO1_JOIN(sums_, FUSEO1_ISA) = {norms_run, gram_run};

}  // namespace fuseo1
