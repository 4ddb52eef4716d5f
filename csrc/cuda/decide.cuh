// SPDX-License-Identifier: Apache-2.0
// Selections that need rows, RANKED and BAND with factors, are decided before they are applied, and handed on as BITS:
// so the kernels that apply them know nothing of rows.
#ifndef FUSEO1_CUDA_DECIDE_CUH_
#define FUSEO1_CUDA_DECIDE_CUH_

#include "select.cuh"

namespace fuseo1 {

// Bytes of device memory that this takes; 0 if nothing is to be decided.
int64_t deciding_bytes(const fuseo1_select* selects, int32_t targets, int64_t numel);

// Makes BITS of what is to be decided; the chunk's first element has flat index `offset`. `room` holds the bits until
// the stream has passed their use. FUSEO1_BAD_ARGUMENT: it is too small.
int decide(const Inputs& in, int64_t offset, Selects* selects, void* room, size_t bytes, void* stream);

}  // namespace fuseo1
#endif  // FUSEO1_CUDA_DECIDE_CUH_
