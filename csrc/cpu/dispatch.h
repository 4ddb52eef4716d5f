// SPDX-License-Identifier: Apache-2.0
// The instruction sets of this build, and the kernels in use.
#ifndef FUSEO1_CPU_DISPATCH_H_
#define FUSEO1_CPU_DISPATCH_H_

#include <string>
#include <vector>

#include "kernels/table.h"

namespace fuseo1 {

// The instruction sets that this build holds and this machine runs, slowest first.
std::vector<std::string> available_isas();

// The kernels of `name`, or of the fastest available one if it is empty; nullptr if `name` is not available.
const Kernels* find_kernels(const std::string& name);

// The kernels in use: the fastest, or those that use_kernels() set.
const Kernels& kernels();
void use_kernels(const Kernels* chosen);

// Whether operands and range are within the contract.
bool valid(const fuseo1_operand* operands, int64_t targets, int64_t offset, int64_t count, int32_t threads);

}  // namespace fuseo1
#endif  // FUSEO1_CPU_DISPATCH_H_
