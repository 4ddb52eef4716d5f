// SPDX-License-Identifier: Apache-2.0
// fuseo1/average.h for Python.
#ifndef FUSEO1_PYTHON_AVERAGE_H_
#define FUSEO1_PYTHON_AVERAGE_H_

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <tuple>
#include <vector>

#include "arguments.h"
#include "fuseo1/average.h"

namespace {

namespace py = pybind11;

// (weights, divisor, first, last, address of the sums or 0)
using AverageParams = std::tuple<std::vector<double>, double, bool, bool, uintptr_t>;

fuseo1_average_params unpack(const AverageParams& params, size_t inputs) {
  const auto& [weights, divisor, first, last, sums] = params;
  if (weights.size() != inputs) throw std::invalid_argument("average: wrong number of inputs or weights");
  return {static_cast<int32_t>(inputs), weights.data(), divisor, first, last, reinterpret_cast<double*>(sums)};
}

int64_t average(const Operands& operands, const AverageParams& params, int64_t count, uintptr_t out, int out_dtype,
                int threads) {
  const auto views = unpack(operands);
  const auto applied = unpack(params, operands.size());
  int64_t nonfinite = 0;
  const py::gil_scoped_release nogil;
  check(fuseo1_average(&applied, views.data(), count, reinterpret_cast<void*>(out), out_dtype, threads, &nonfinite),
        "average");
  return nonfinite;
}

int64_t average_files(const Files& files, const AverageParams& params, int64_t offset, int64_t count,
                      const Scratch& scratch, uintptr_t out, int out_dtype, int threads) {
  const auto views = unpack(files);
  const auto applied = unpack(params, files.size());
  int64_t nonfinite = 0;
  fuseo1_read_error error = {};
  const py::gil_scoped_release nogil;
  check_read(fuseo1_average_files(&applied, views.data(), offset, count, unpack(scratch), reinterpret_cast<void*>(out),
                                  out_dtype, threads, &nonfinite, &error),
             "average_files", error);
  return nonfinite;
}

void define_average(py::module_& m) {
  m.def("average", &average, py::arg("operands"), py::arg("params"), py::arg("count"), py::arg("out"),
        py::arg("out_dtype"), py::arg("threads"), "Returns how many elements were written as infinity or NaN.");
  m.def("average_files", &average_files, py::arg("files"), py::arg("params"), py::arg("offset"), py::arg("count"),
        py::arg("scratch"), py::arg("out"), py::arg("out_dtype"), py::arg("threads"),
        "As average, of inputs in files.");
}

}  // namespace
#endif  // FUSEO1_PYTHON_AVERAGE_H_
