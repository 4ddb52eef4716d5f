// SPDX-License-Identifier: Apache-2.0
// Selections that need rows, RANKED and BAND with factors, are decided before they are applied, and passed on as BITS,
// so that the kernels that apply them need not know rows.
#ifndef FUSEO1_CUDA_DECIDE_CUH_
#define FUSEO1_CUDA_DECIDE_CUH_

#include "select.cuh"

namespace fuseo1 {

// Bytes of device memory for `decide`; 0 if there is nothing to decide.
int64_t deciding_bytes(const fuseo1_select* selects, int32_t targets, int64_t numel);

// Turns these selections into BITS; the chunk's first element has flat index `offset`. `room` holds the bits until the
// stream has passed their use. FUSEO1_BAD_ARGUMENT: it is too small.
int decide(const Inputs& in, int64_t offset, Selects* selects, void* room, size_t bytes, void* stream);

}  // namespace fuseo1
#endif  // FUSEO1_CUDA_DECIDE_CUH_
