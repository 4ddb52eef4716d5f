// SPDX-License-Identifier: Apache-2.0
// The ops that compute inputs of a merge: addresses in, addresses out.
#include "cpu_inputs.h"

#include <cstdint>
#include <stdexcept>

#include "fuseo1/decode.h"

namespace py = pybind11;

namespace {

void decode(int code, int64_t columns, int64_t block_rows, int64_t block_columns, uintptr_t scales, uintptr_t codes,
            int64_t start, int64_t count, uintptr_t out, int threads) {
  const fuseo1_decode_params params{code, columns, block_rows, block_columns, reinterpret_cast<const float*>(scales)};
  const py::gil_scoped_release nogil;
  if (fuseo1_decode(&params, reinterpret_cast<const uint8_t*>(codes), start, count, reinterpret_cast<float*>(out),
                    threads) != FUSEO1_OK) {
    throw std::invalid_argument("decode: argument outside the contract");
  }
}

}  // namespace

void bind_inputs(py::module_& m) {
  m.attr("CODE_E4M3") = static_cast<int>(FUSEO1_E4M3);
  m.attr("CODE_E5M2") = static_cast<int>(FUSEO1_E5M2);
  m.def("decode", &decode, py::kw_only(), py::arg("code"), py::arg("columns"), py::arg("block_rows"),
        py::arg("block_columns"), py::arg("scales"), py::arg("codes"), py::arg("start"), py::arg("count"),
        py::arg("out"), py::arg("threads"));
}
