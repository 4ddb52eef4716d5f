// SPDX-License-Identifier: Apache-2.0
// Where threads wait for each other.
#ifndef FUSEO1_TESTS_MEETING_H_
#define FUSEO1_TESTS_MEETING_H_

#include <cuda_runtime.h>

#include "ordering.h"

namespace emulation {

constexpr unsigned kLanes = 32;

// A call in the source, and where that is in the machine code, which differs for what is inlined at different places.
struct Place {
  Call call;
  const void* address;
  bool operator==(const Place& other) const { return address == other.address && call.line == other.call.line; }
};

// Those that are to come to the same call: a CTA's threads, or a warp's lanes.
struct Meeting {
  Place place;
  unsigned first, arrived, round;
  uint64_t given[kLanes], taken[kLanes];
  Board boards[2];  // of even and of odd rounds

  Board* board() { return &boards[round % 2]; }
};

}  // namespace emulation

#endif  // FUSEO1_TESTS_MEETING_H_
