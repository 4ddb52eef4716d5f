// SPDX-License-Identifier: Apache-2.0
#ifndef FUSEO1_PYTHON_CPU_INPUTS_H_
#define FUSEO1_PYTHON_CPU_INPUTS_H_

#include <pybind11/pybind11.h>

// Adds the ops that compute inputs of a merge to the module _cpu.
void bind_inputs(pybind11::module_& m);

#endif  // FUSEO1_PYTHON_CPU_INPUTS_H_
