// SPDX-License-Identifier: Apache-2.0
// fuseo1/fold.h for Python.
#ifndef FUSEO1_PYTHON_FOLD_H_
#define FUSEO1_PYTHON_FOLD_H_

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <utility>

#include "arguments.h"
#include "fuseo1/fold.h"

namespace {

namespace py = pybind11;

// Addresses point at numbers as fuseo1/fold.h has them.
class FoldParams {
 public:
  FoldParams(int64_t columns, int64_t rank, double scale, uintptr_t left, uintptr_t right, uintptr_t factors,
             int factors_by)
      : params_{columns,
                rank,
                scale,
                reinterpret_cast<const float*>(left),
                reinterpret_cast<const float*>(right),
                reinterpret_cast<const double*>(factors),
                factors_by} {}
  const fuseo1_fold_params* get() const { return &params_; }

 private:
  fuseo1_fold_params params_;
};

using Operand = std::pair<uintptr_t, int>;  // (address, dtype)

fuseo1_operand unpack(const Operand& operand) { return {reinterpret_cast<const void*>(operand.first), operand.second}; }

void fold(const FoldParams& params, const Operand& weights, int64_t start, int64_t count, uintptr_t out, int threads) {
  const py::gil_scoped_release nogil;
  check(fuseo1_fold(params.get(), unpack(weights), start, count, reinterpret_cast<float*>(out), threads), "fold");
}

void fold_squares(const FoldParams& params, const Operand& weights, int64_t rows, uintptr_t squares, int threads) {
  const py::gil_scoped_release nogil;
  check(fuseo1_fold_squares(params.get(), unpack(weights), rows, reinterpret_cast<double*>(squares), threads),
        "fold_squares");
}

void fold_factors(const Operand& magnitudes, uintptr_t squares, int64_t count) {
  auto* const factors = reinterpret_cast<double*>(squares);
  const py::gil_scoped_release nogil;
  check(fuseo1_fold_factors(unpack(magnitudes), factors, count, factors), "fold_factors");
}

void fold_widen(const Operand& matrix, int64_t rows, int64_t columns, bool transposed, uintptr_t out) {
  const py::gil_scoped_release nogil;
  check(fuseo1_fold_widen(unpack(matrix), rows, columns, transposed, reinterpret_cast<float*>(out)), "fold_widen");
}

void define_fold(py::module_& m) {
  m.attr("FACTORS_BY_ROW") = static_cast<int>(FUSEO1_FACTORS_BY_ROW);
  m.attr("FACTORS_BY_COLUMN") = static_cast<int>(FUSEO1_FACTORS_BY_COLUMN);
  py::class_<FoldParams>(m, "FoldParams")
      .def(py::init<int64_t, int64_t, double, uintptr_t, uintptr_t, uintptr_t, int>(), py::kw_only(),
           py::arg("columns"), py::arg("rank"), py::arg("scale"), py::arg("left"), py::arg("right"),
           py::arg("factors") = 0, py::arg("factors_by") = 0);
  m.def("fold", &fold, py::arg("params"), py::arg("weights"), py::arg("start"), py::arg("count"), py::arg("out"),
        py::arg("threads"));
  m.def("fold_squares", &fold_squares, py::arg("params"), py::arg("weights"), py::arg("rows"), py::arg("squares"),
        py::arg("threads"));
  m.def("fold_factors", &fold_factors, py::arg("magnitudes"), py::arg("squares"), py::arg("count"),
        "Turns the squares into the factors, in place.");
  m.def("fold_widen", &fold_widen, py::arg("matrix"), py::arg("rows"), py::arg("columns"), py::arg("transposed"),
        py::arg("out"));
}

}  // namespace
#endif  // FUSEO1_PYTHON_FOLD_H_
