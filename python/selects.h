// SPDX-License-Identifier: Apache-2.0
// fuseo1_select for Python, in both modules: constructors of each kind. BAND and CLAMP are bound by each module,
// because their arguments differ.
#ifndef FUSEO1_PYTHON_SELECTS_H_
#define FUSEO1_PYTHON_SELECTS_H_

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <utility>

#include "fuseo1/select.h"

namespace {

using Cut = std::pair<uint32_t, int64_t>;  // (threshold, tie_limit)

fuseo1_select select_band(const Cut& keep, const Cut& drop, const fuseo1_row_factors& rows) {
  fuseo1_select out = {};
  out.kind = FUSEO1_SELECT_BAND;
  out.keep = {keep.first, keep.second};
  out.drop = {drop.first, drop.second};
  out.rows = rows;
  return out;
}

fuseo1_select select_draw(uint64_t key, uint32_t limit) {
  fuseo1_select out = {};
  out.kind = FUSEO1_SELECT_DRAW;
  out.key = key;
  out.limit = limit;
  return out;
}

fuseo1_select select_bits(uintptr_t address) {
  fuseo1_select out = {};
  out.kind = FUSEO1_SELECT_BITS;
  out.bits = reinterpret_cast<const uint64_t*>(address);
  return out;
}

fuseo1_select select_clamp(float most) {
  fuseo1_select out = {};
  out.kind = FUSEO1_SELECT_CLAMP;
  out.most = most;
  return out;
}

fuseo1_select select_ranked(uint64_t key, int64_t row, double low, double span) {
  fuseo1_select out = {};
  out.kind = FUSEO1_SELECT_RANKED;
  out.key = key;
  out.row = row;
  out.low = low;
  out.span = span;
  return out;
}

// The class, without `band` and `clamp`. Local to the module, because the other module binds the same type.
inline pybind11::class_<fuseo1_select> define_selects(pybind11::module_& m) {
  namespace py = pybind11;
  return py::class_<fuseo1_select>(m, "Select", py::module_local())
      .def(py::init([] { return fuseo1_select{}; }), "Everything.")
      .def_static("draw", &select_draw, py::arg("key"), py::arg("limit"))
      .def_static("bits", &select_bits, py::arg("address"))
      .def_static("ranked", &select_ranked, py::arg("key"), py::arg("row"), py::arg("low"), py::arg("span"));
}

}  // namespace
#endif  // FUSEO1_PYTHON_SELECTS_H_
