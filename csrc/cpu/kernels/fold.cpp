// SPDX-License-Identifier: Apache-2.0
// W + s * L R (include/fuseo1/fold.h). Compiled once per instruction set with FUSEO1_ISA naming it.
#include "block.h"
#include "simd64.h"

namespace fuseo1 {
namespace {

// A tile of so many rows shares the widening of R; so many vectors of columns hide the latency of the sums.
constexpr int kTileRows = 4, kTileVectors = 2, kTileColumns = kTileVectors * kWidth64;

template <class T>
void widen_run(const fuseo1_operand& op, int64_t at, int64_t count, float* out) {
  const typename T::Bits* p = elements<T>(op, at);
  int64_t j = 0;
  for (; j + kWidth <= count; j += kWidth) store(out + j, T::widen(p + j));
  if (j == count) return;
  typename T::Bits padded[kWidth] = {};
  float lanes[kWidth];
  memcpy(padded, p + j, static_cast<size_t>(count - j) * sizeof(*p));
  store(lanes, T::widen(padded));
  memcpy(out + j, lanes, static_cast<size_t>(count - j) * sizeof(float));
}

// The operand's elements [at, at + count) as fp32.
void widen_elements(const fuseo1_operand& op, int64_t at, int64_t count, float* out) {
  switch (op.dtype) {
    case FUSEO1_BF16:
      return widen_run<Bf16>(op, at, count, out);
    case FUSEO1_FP16:
      return widen_run<Fp16>(op, at, count, out);
    default:
      return widen_run<Fp32>(op, at, count, out);
  }
}

// Calls put(row, column, v) with vectors of v and put_one(row, column, v) with single ones, for columns [begin, end) of
// `kRows` rows from `row` on; `weights` has element (row, begin), and `stride` elements a row.
template <int kRows, class Put, class PutOne>
FUSEO1_INLINE void fold_rows(const fuseo1_fold_params& p, int64_t row, int64_t begin, int64_t end, const float* weights,
                             int64_t stride, const Put& put, const PutOne& put_one) {
  const float* const left = p.left + row * p.rank;
  int64_t c = begin;
  for (; c + kTileColumns <= end; c += kTileColumns) {
    Vd sums[kRows][kTileVectors] = {};
    for (int64_t k = 0; k < p.rank; ++k) {
      Vd right[kTileVectors];
      for (int v = 0; v < kTileVectors; ++v) right[v] = load_wide(p.right + k * p.columns + c + v * kWidth64);
      for (int i = 0; i < kRows; ++i) {
        const Vd l = splat(static_cast<double>(left[i * p.rank + k]));
        for (int v = 0; v < kTileVectors; ++v) sums[i][v] = add_exact_product(l, right[v], sums[i][v]);
      }
    }
    for (int i = 0; i < kRows; ++i) {
      for (int v = 0; v < kTileVectors; ++v) {
        const int64_t at = c + v * kWidth64;
        put(i, at, load_wide(weights + i * stride + at - begin) + splat(p.scale) * sums[i][v]);
      }
    }
  }
  for (; c < end; ++c) {
    for (int i = 0; i < kRows; ++i) {
      double sum = 0;
      for (int64_t k = 0; k < p.rank; ++k) {
        sum += static_cast<double>(left[i * p.rank + k]) * static_cast<double>(p.right[k * p.columns + c]);
      }
      put_one(i, c, static_cast<double>(weights[i * stride + c - begin]) + p.scale * sum);
    }
  }
}

// Folds columns [begin, end) of rows in place: `out` holds the weights, and has `columns` elements a row.
template <int kRows>
void fold_tile(const fuseo1_fold_params& p, int64_t row, int64_t begin, int64_t end, float* out) {
  const auto put = [&](int i, int64_t c, Vd v) {
    if (p.factors_by == FUSEO1_FACTORS_BY_ROW) v = splat(p.factors[row + i]) * v;
    if (p.factors_by == FUSEO1_FACTORS_BY_COLUMN) v = load<Vd>(p.factors + c) * v;
    store(out + i * p.columns + c - begin, narrow(v));
  };
  const auto put_one = [&](int i, int64_t c, double v) {
    if (p.factors_by == FUSEO1_FACTORS_BY_ROW) v = p.factors[row + i] * v;
    if (p.factors_by == FUSEO1_FACTORS_BY_COLUMN) v = p.factors[c] * v;
    out[i * p.columns + c - begin] = static_cast<float>(v);
  };
  fold_rows<kRows>(p, row, begin, end, out, p.columns, put, put_one);
}

void fold_run(const fuseo1_fold_params& p, const fuseo1_operand& weights, int64_t start, int64_t begin, int64_t end,
              float* out) {
  const int64_t first = start / p.columns;
  for (int64_t at = start + begin; at < start + end;) {
    const int64_t row = at / p.columns, column = at - row * p.columns;
    float* const to = out + (at - start);
    if (column == 0 && start + end - at >= kTileRows * p.columns) {
      widen_elements(weights, at - start, kTileRows * p.columns, to);
      fold_tile<kTileRows>(p, row - first, 0, p.columns, to);
      at += kTileRows * p.columns;
      continue;
    }
    const int64_t count = p.columns - column < start + end - at ? p.columns - column : start + end - at;
    widen_elements(weights, at - start, count, to);
    fold_tile<1>(p, row - first, column, column + count, to);
    at += count;
  }
}

// Rows [begin, end) of the range; `room` has a row of fp32.
void row_squares_run(const fuseo1_fold_params& p, const fuseo1_operand& weights, int64_t begin, int64_t end,
                     float* room, double* squares) {
  constexpr int kLanes = 8;
  for (int64_t row = begin; row < end; ++row) {
    widen_elements(weights, row * p.columns, p.columns, room);
    double lane[kLanes] = {};
    const auto put_one = [&](int, int64_t c, double v) { lane[c % kLanes] += v * v; };
    const auto put = [&](int, int64_t c, Vd v) {
      double* const to = lane + c % kLanes;
      store(to, load<Vd>(to) + v * v);
    };
    fold_rows<1>(p, row, 0, p.columns, room, p.columns, put, put_one);
    for (int n = kLanes / 2; n; n /= 2) {
      for (int j = 0; j < n; ++j) lane[j] += lane[j + n];
    }
    squares[row] = lane[0];
  }
}

// Columns [begin, end) of `rows` rows; `room` has as many fp32.
void column_squares_run(const fuseo1_fold_params& p, const fuseo1_operand& weights, int64_t rows, int64_t begin,
                        int64_t end, float* room, double* squares) {
  const auto put = [&](int, int64_t c, Vd v) { store(squares + c, load<Vd>(squares + c) + v * v); };
  const auto put_one = [&](int, int64_t c, double v) { squares[c] += v * v; };
  for (int64_t row = 0; row < rows; ++row) {
    widen_elements(weights, row * p.columns + begin, end - begin, room);
    fold_rows<1>(p, row, begin, end, room, end - begin, put, put_one);
  }
}

}  // namespace

extern const FoldKernels FUSEO1_JOIN(fold_, FUSEO1_ISA) = {fold_run, row_squares_run, column_squares_run,
                                                           widen_elements};

}  // namespace fuseo1
