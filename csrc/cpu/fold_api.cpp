// SPDX-License-Identifier: Apache-2.0
// fold's C ABI: checks arguments and spreads rows or columns over threads.
#include <cmath>
#include <memory>
#include <new>

#include "dispatch.h"
#include "fuseo1/fold.h"
#include "parallel.h"

namespace {

using namespace fuseo1;

// Columns that a thread takes at once: a multiple of every vector's lanes.
constexpr int64_t kColumns = 512;
// Columns that are widened at once before they are transposed.
constexpr int64_t kWideColumns = 64;

bool valid_operand(const fuseo1_operand& operand, int64_t count) {
  return operand.dtype >= FUSEO1_BF16 && operand.dtype <= FUSEO1_FP32 && (operand.data || !count);
}

bool valid_params(const fuseo1_fold_params* p) {
  return p && p->columns >= 1 && p->rank >= 0 && ((p->left && p->right) || !p->rank) &&
         p->factors_by >= FUSEO1_FACTORS_NONE && p->factors_by <= FUSEO1_FACTORS_BY_COLUMN;
}

}  // namespace

extern "C" {

int fuseo1_fold(const fuseo1_fold_params* params, fuseo1_operand weights, int64_t start, int64_t count, float* out,
                int32_t threads) {
  if (!valid_params(params) || (params->factors_by && !params->factors) || !valid_operand(weights, count) ||
      start < 0 || count < 0 || threads < 1 || (!out && count)) {
    return FUSEO1_BAD_ARGUMENT;
  }
  const Kernels& k = kernels();
  for_each_segment(start, count, threads,
                   [&](int, int64_t begin, int64_t end) { k.fold.fold(*params, weights, start, begin, end, out); });
  return FUSEO1_OK;
}

int fuseo1_fold_squares(const fuseo1_fold_params* params, fuseo1_operand weights, int64_t rows, double* squares,
                        int32_t threads) {
  if (!valid_params(params) || !params->factors_by || rows < 0 || threads < 1 || !valid_operand(weights, rows) ||
      !squares) {
    return FUSEO1_BAD_ARGUMENT;
  }
  const Kernels& k = kernels();
  const bool by_row = params->factors_by == FUSEO1_FACTORS_BY_ROW;
  const int64_t whole = by_row ? rows : params->columns;
  const int64_t piece = by_row ? std::max<int64_t>(kSegment / params->columns, 1) : kColumns;
  const int64_t used = std::min<int64_t>(threads, segments_of(0, whole, piece));
  const int64_t room = by_row ? params->columns : std::min(kColumns, params->columns);
  try {
    const std::unique_ptr<float[]> rooms(new float[static_cast<size_t>(std::max<int64_t>(used, 1) * room)]);
    for_each_segment(
        0, whole, threads,
        [&](int thread, int64_t begin, int64_t end) {
          float* const own = rooms.get() + thread * room;
          if (by_row) {
            k.fold.row_squares(*params, weights, begin, end, own, squares);
          } else {
            k.fold.column_squares(*params, weights, rows, begin, end, own, squares);
          }
        },
        piece);
  } catch (const std::bad_alloc&) {
    return FUSEO1_OUT_OF_MEMORY;
  }
  return FUSEO1_OK;
}

int fuseo1_fold_factors(fuseo1_operand magnitudes, const double* squares, int64_t count, double* factors) {
  if (!valid_operand(magnitudes, count) || count < 0 || (count && (!squares || !factors))) return FUSEO1_BAD_ARGUMENT;
  const DefaultFloatingPoint guard;
  const Kernels& k = kernels();
  float magnitude;
  for (int64_t i = 0; i < count; ++i) {
    k.fold.widen(magnitudes, i, 1, &magnitude);
    factors[i] = static_cast<double>(magnitude) / std::sqrt(squares[i]);
  }
  return FUSEO1_OK;
}

int fuseo1_fold_widen(fuseo1_operand matrix, int64_t rows, int64_t columns, int32_t transposed, float* out) {
  if (!valid_operand(matrix, rows * columns) || rows < 0 || columns < 0 || (!out && rows * columns)) {
    return FUSEO1_BAD_ARGUMENT;
  }
  const DefaultFloatingPoint guard;
  const Kernels& k = kernels();
  if (!transposed) {
    k.fold.widen(matrix, 0, rows * columns, out);
    return FUSEO1_OK;
  }
  float room[kWideColumns];
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t c = 0; c < columns; c += kWideColumns) {
      const int64_t count = std::min(kWideColumns, columns - c);
      k.fold.widen(matrix, row * columns + c, count, room);
      for (int64_t j = 0; j < count; ++j) out[(c + j) * rows + row] = room[j];
    }
  }
  return FUSEO1_OK;
}

}  // extern "C"
