// SPDX-License-Identifier: Apache-2.0
// fuseo1/decode.h for Python.
#ifndef FUSEO1_PYTHON_DECODE_H_
#define FUSEO1_PYTHON_DECODE_H_

#include <pybind11/pybind11.h>

#include "arguments.h"
#include "fuseo1/decode.h"

namespace {

namespace py = pybind11;

void decode(int code, int64_t columns, int64_t block_rows, int64_t block_columns, uintptr_t scales, uintptr_t codes,
            int64_t start, int64_t count, uintptr_t out, int threads) {
  const fuseo1_decode_params params{code, columns, block_rows, block_columns, reinterpret_cast<const float*>(scales)};
  const py::gil_scoped_release nogil;
  check(fuseo1_decode(&params, reinterpret_cast<const uint8_t*>(codes), start, count, reinterpret_cast<float*>(out),
                      threads),
        "decode");
}

void define_decode(py::module_& m) {
  m.attr("CODE_E4M3") = static_cast<int>(FUSEO1_E4M3);
  m.attr("CODE_E5M2") = static_cast<int>(FUSEO1_E5M2);
  m.def("decode", &decode, py::kw_only(), py::arg("code"), py::arg("columns"), py::arg("block_rows"),
        py::arg("block_columns"), py::arg("scales"), py::arg("codes"), py::arg("start"), py::arg("count"),
        py::arg("out"), py::arg("threads"));
}

}  // namespace
#endif  // FUSEO1_PYTHON_DECODE_H_
