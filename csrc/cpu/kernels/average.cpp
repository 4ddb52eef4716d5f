// SPDX-License-Identifier: Apache-2.0
// The average op (include/fuseo1/average.h), tile by tile: a tile's sums stay in registers while all inputs pass.
// Compiled once per instruction set with FUSEO1_ISA naming it.
#include "simd64.h"
#include "table.h"

namespace fuseo1 {
namespace {

constexpr int kVectors = 4;  // of fp32, in a tile
constexpr int kTile = kVectors * kWidth;

// Whether w * x is exact for every x of 24 bits: FMA then rounds as a product and a sum do.
bool exact_products(const double* weights, int32_t inputs) {
  for (int i = 0; i < inputs; ++i) {
    uint64_t mantissa;
    memcpy(&mantissa, weights + i, sizeof mantissa);
    const double magnitude = __builtin_fabs(weights[i]);
    // Products of fp32's denormals, 2^-149, must not be denormals of fp64 either.
    if ((mantissa & ((uint64_t{1} << 24) - 1)) || (magnitude != 0 && magnitude < 0x1p-800)) return false;
  }
  return true;
}

template <bool kExact>
FUSEO1_INLINE Vd add_product(Vd w, Vd x, Vd sum) {
  return kExact ? add_exact_product(w, x, sum) : sum + w * x;
}

// Adds inputs [begin, end), all of type T, to a tile's sums; it is at element `at` of each.
template <class T, bool kExact>
void add_inputs(const fuseo1_average_params& params, const fuseo1_operand* operands, int begin, int end, int64_t at,
                Vd* sums) {
  Vd s[2 * kVectors];
  for (int v = 0; v < 2 * kVectors; ++v) s[v] = sums[v];
  for (int i = begin; i < end; ++i) {
    const typename T::Bits* x = static_cast<const typename T::Bits*>(operands[i].data) + at;
    const Vd w = splat(params.weights[i]);
    for (int v = 0; v < kVectors; ++v) {
      const Vf wide = T::widen(x + v * kWidth);
      s[2 * v] = add_product<kExact>(w, widen_lower(wide), s[2 * v]);
      s[2 * v + 1] = add_product<kExact>(w, widen_upper(wide), s[2 * v + 1]);
    }
  }
  for (int v = 0; v < 2 * kVectors; ++v) sums[v] = s[v];
}

template <bool kExact>
void add_all(const fuseo1_average_params& params, const fuseo1_operand* operands, int64_t at, Vd* sums) {
  for (int i = 0, end = 0; i < params.inputs; i = end) {
    while (end < params.inputs && operands[end].dtype == operands[i].dtype) ++end;
    switch (operands[i].dtype) {
      case FUSEO1_BF16:
        add_inputs<Bf16, kExact>(params, operands, i, end, at, sums);
        break;
      case FUSEO1_FP16:
        add_inputs<Fp16, kExact>(params, operands, i, end, at, sums);
        break;
      default:
        add_inputs<Fp32, kExact>(params, operands, i, end, at, sums);
    }
  }
}

// Rounds a tile's sums to `out`; returns how many are not finite.
template <class Out>
int64_t round_tile(const Vd* sums, double divisor, typename Out::Bits* out) {
  const Vd by = splat(divisor);
  int64_t nonfinite = 0;
  for (int v = 0; v < kVectors; ++v) {
    alignas(64) float rounded[kWidth];
    for (int half = 0; half < 2; ++half) {
      const Vd s = sums[2 * v + half];
      const Vd e = select(is_finite(s), divisor == 1.0 ? s : s / by, splat(__builtin_nan("")));
      store(rounded + half * kWidth64, Out::kNarrow ? narrow_to_odd(e) : narrow(e));
    }
    const Vf x = load<Vf>(rounded);
    const Vu result = select(equal(x, x), Out::round(x), splat(Out::kNan));
    nonfinite += count(greater((Vi)(result & Out::kAbs), (Vi)splat(Out::kInf - 1)));
    store_lanes(out + v * kWidth, result);
  }
  return nonfinite;
}

template <class Out, bool kExact>
class Average {
 public:
  Average(const fuseo1_average_params& params, const fuseo1_operand* operands, void* out)
      : params_(params), operands_(operands), out_(static_cast<typename Out::Bits*>(out)) {}

  // Elements [begin, end), counted as the operands' are; returns how many outputs are not finite.
  int64_t operator()(int64_t begin, int64_t end) const {
    int64_t nonfinite = 0, at = begin;
    for (; at + kTile <= end; at += kTile) {
      Vd sums[2 * kVectors];
      for (int v = 0; v < 2 * kVectors; ++v) {
        sums[v] = params_.first ? splat(-0.0) : load<Vd>(params_.sums + at + v * kWidth64);
      }
      add_all<kExact>(params_, operands_, at, sums);
      if (params_.last) {
        nonfinite += round_tile<Out>(sums, params_.divisor, out_ + at);
      } else {
        for (int v = 0; v < 2 * kVectors; ++v) store(params_.sums + at + v * kWidth64, sums[v]);
      }
    }
    return nonfinite + (at < end ? tail(at, end - at) : 0);
  }

 private:
  // Fewer elements than a tile has: copies, padded with zeros.
  int64_t tail(int64_t at, int64_t count) const {
    alignas(64) char inputs[FUSEO1_MAX_AVERAGED][kTile * 4] = {};
    alignas(64) double sums[kTile] = {};
    alignas(64) typename Out::Bits out[kTile];
    fuseo1_operand operands[FUSEO1_MAX_AVERAGED];
    for (int i = 0; i < params_.inputs; ++i) {
      const int64_t size = element_size(operands_[i].dtype);
      memcpy(inputs[i], static_cast<const char*>(operands_[i].data) + at * size, static_cast<size_t>(count * size));
      operands[i] = {inputs[i], operands_[i].dtype};
    }
    const size_t bytes = static_cast<size_t>(count) * sizeof *sums;
    if (!params_.first) memcpy(sums, params_.sums + at, bytes);
    fuseo1_average_params padded = params_;
    padded.sums = sums;
    const int64_t nonfinite = Average(padded, operands, out)(0, kTile);
    if (params_.last) {
      memcpy(out_ + at, out, static_cast<size_t>(count) * sizeof *out);
    } else {
      memcpy(params_.sums + at, sums, bytes);
    }
    return nonfinite;
  }

  const fuseo1_average_params& params_;
  const fuseo1_operand* operands_;
  typename Out::Bits* out_;
};

template <class Out>
int64_t average_to(const fuseo1_average_params& params, const fuseo1_operand* operands, int64_t begin, int64_t end,
                   void* out) {
  if (exact_products(params.weights, params.inputs)) return Average<Out, true>(params, operands, out)(begin, end);
  return Average<Out, false>(params, operands, out)(begin, end);
}

int64_t average_run(const fuseo1_average_params& params, const fuseo1_operand* operands, int64_t begin, int64_t end,
                    void* out, int32_t out_dtype) {
  switch (out_dtype) {
    case FUSEO1_BF16:
      return average_to<Bf16>(params, operands, begin, end, out);
    case FUSEO1_FP16:
      return average_to<Fp16>(params, operands, begin, end, out);
    default:
      return average_to<Fp32>(params, operands, begin, end, out);
  }
}

}  // namespace

extern const decltype(Kernels::average) FUSEO1_JOIN(average_, FUSEO1_ISA) = average_run;

}  // namespace fuseo1
