// SPDX-License-Identifier: Apache-2.0
// CUDA's groups of threads, as far as they are used.
#ifndef FUSEO1_TESTS_COOPERATIVE_GROUPS_H_
#define FUSEO1_TESTS_COOPERATIVE_GROUPS_H_

#include <cuda_runtime.h>

namespace cooperative_groups {

struct grid_group {
  __forceinline__ void sync() const { ::emulation::grid_barrier(FUSEO1_CALL("grid_group::sync")); }
};
__forceinline__ grid_group this_grid() { return {}; }

}  // namespace cooperative_groups

#endif  // FUSEO1_TESTS_COOPERATIVE_GROUPS_H_
