// SPDX-License-Identifier: Apache-2.0
// Python's arguments as the C ABI takes them, and its error codes as exceptions.
#ifndef FUSEO1_PYTHON_ARGUMENTS_H_
#define FUSEO1_PYTHON_ARGUMENTS_H_

#include <cstdint>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "fuseo1/average.h"
#include "fuseo1/files.h"
#include "fuseo1/fuse.h"
#include "fuseo1/survey.h"

namespace {

using Operands = std::vector<std::pair<uintptr_t, int>>;  // (address, dtype), the base first

std::vector<fuseo1_operand> unpack(const Operands& operands) {
  std::vector<fuseo1_operand> out;
  for (const auto& [address, dtype] : operands) out.push_back({reinterpret_cast<const void*>(address), dtype});
  return out;
}

using Files = std::vector<std::tuple<int, int, int64_t>>;  // (descriptor, dtype, byte offset), the base first
using Scratch = std::pair<uintptr_t, int64_t>;             // (address, bytes)

std::vector<fuseo1_file> unpack(const Files& files) {
  std::vector<fuseo1_file> out;
  for (const auto& [fd, dtype, offset] : files) out.push_back({fd, dtype, offset});
  return out;
}

fuseo1_scratch unpack(const Scratch& scratch) { return {reinterpret_cast<void*>(scratch.first), scratch.second}; }

// Thrown for a file that could not be read, as (input, errno); the caller knows the file's name.
struct ReadError {
  fuseo1_read_error what;
};

void check(int status, const char* what) {
  switch (status) {
    case FUSEO1_OK:
      return;
    case FUSEO1_OUT_OF_MEMORY:
      throw std::bad_alloc();
    case FUSEO1_WRONG_PHASE:
      throw std::logic_error(std::string(what) + ": not in this phase");
    default:
      throw std::invalid_argument(std::string(what) + ": argument outside the contract");
  }
}

void check_read(int status, const char* what, const fuseo1_read_error& error) {
  if (status == FUSEO1_READ_FAILED) throw ReadError{error};
  check(status, what);
}

// Points into the memory of `factors`, fp32; empty: no factors.
fuseo1_row_factors row_factors(int64_t row, std::string_view factors) {
  return {factors.empty() ? nullptr : reinterpret_cast<const float*>(factors.data()), row};
}

}  // namespace
#endif  // FUSEO1_PYTHON_ARGUMENTS_H_
