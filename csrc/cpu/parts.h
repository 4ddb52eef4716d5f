// SPDX-License-Identifier: Apache-2.0
// A merged block before it is rounded.
// Included only by the per-ISA sources; internal linkage throughout (see simd.h).
#ifndef FUSEO1_CPU_PARTS_H_
#define FUSEO1_CPU_PARTS_H_

#include "arithmetic.h"

namespace fuseo1 {
namespace {

// Sums of two, of which `small` is what `large` lacks: a base and a delta, or two halves of an fp64.
struct Parts {
  alignas(64) float large[kBlock];
  alignas(64) float small[kBlock];
};

}  // namespace
}  // namespace fuseo1
#endif  // FUSEO1_CPU_PARTS_H_
