// SPDX-License-Identifier: Apache-2.0
// Codes times scales (include/fuseo1/decode.h). Compiled once per instruction set with FUSEO1_ISA naming it.
#include <stdint.h>
#include <string.h>

#include "simd.h"
#include "table.h"

namespace fuseo1 {
namespace {

struct E4m3 {
  static constexpr int kMantissa = 3, kBias = 7;
  static constexpr float kLeast = 0x1p-9f;      // the number of code 1
  static constexpr uint32_t kNonfinite = 0x7f;  // the codes from here on, all of them NaN
  static constexpr uint32_t kInfinity = 0x100;  // none
};

struct E5m2 {
  static constexpr int kMantissa = 2, kBias = 15;
  static constexpr float kLeast = 0x1p-16f;
  static constexpr uint32_t kNonfinite = 0x7c;
  static constexpr uint32_t kInfinity = 0x7c;
};

// Without branches and without denormals of fp32, which cost processors a hundred cycles.
template <class Code>
FUSEO1_INLINE float decode(uint8_t code, float scale) {
  const uint32_t magnitude = code & 0x7fu, sign = (code & 0x80u) << 24;
  const float small = static_cast<float>(static_cast<int32_t>(magnitude)) * Code::kLeast;
  uint32_t word;
  memcpy(&word, &small, sizeof word);
  const uint32_t normal = (magnitude << (23 - Code::kMantissa)) + (static_cast<uint32_t>(127 - Code::kBias) << 23);
  word = magnitude >> Code::kMantissa ? normal : word;
  const uint32_t special = magnitude == Code::kInfinity ? 0x7f800000u : 0x7fc00000u;
  word = (magnitude >= Code::kNonfinite ? special : word) | sign;
  float value;
  memcpy(&value, &word, sizeof value);
  return value * scale;
}

template <class Code>
void decode_run(const fuseo1_decode_params& p, const uint8_t* codes, int64_t start, int64_t begin, int64_t end,
                float* out) {
  const int64_t blocks = (p.columns + p.block_columns - 1) / p.block_columns;
  for (int64_t at = begin; at < end;) {
    const int64_t row = (start + at) / p.columns, column = start + at - row * p.columns;
    const int64_t block = column / p.block_columns;
    int64_t stop = (block + 1) * p.block_columns;
    stop = stop < p.columns ? stop : p.columns;
    const int64_t left = end - at, count = stop - column < left ? stop - column : left;
    const float scale = p.scales[row / p.block_rows * blocks + block];
    for (int64_t j = at; j < at + count; ++j) out[j] = decode<Code>(codes[j], scale);
    at += count;
  }
}

void decode_any(const fuseo1_decode_params& p, const uint8_t* codes, int64_t start, int64_t begin, int64_t end,
                float* out) {
  return p.code == FUSEO1_E4M3 ? decode_run<E4m3>(p, codes, start, begin, end, out)
                               : decode_run<E5m2>(p, codes, start, begin, end, out);
}

}  // namespace

extern const decltype(Kernels::decode) FUSEO1_JOIN(decode_, FUSEO1_ISA) = decode_any;

}  // namespace fuseo1
