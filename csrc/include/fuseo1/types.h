// SPDX-License-Identifier: Apache-2.0
// Shared by every op of the C ABI: element types, operands, status codes and limits.
#ifndef FUSEO1_TYPES_H_
#define FUSEO1_TYPES_H_

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum fuseo1_dtype { FUSEO1_BF16 = 0, FUSEO1_FP16 = 1, FUSEO1_FP32 = 2 };

// An operand is a run of elements of one type. `data` may have any alignment.
typedef struct {
  const void* data;
  int32_t dtype;  // enum fuseo1_dtype
} fuseo1_operand;

enum fuseo1_status {
  FUSEO1_OK = 0,
  FUSEO1_BAD_ARGUMENT = 1,  // a size, dtype or offset outside the contract
  FUSEO1_WRONG_PHASE = 2,   // the survey's phase does not allow this call
  FUSEO1_OUT_OF_MEMORY = 3,
  FUSEO1_READ_FAILED = 4,    // a file could not be read
  FUSEO1_DEVICE_FAILED = 5,  // a call to the GPU failed: see fuseo1_cuda_last_error
};

// The most targets of a call.
#define FUSEO1_MAX_TARGETS 64

// Energies are summed in blocks of this many consecutive elements of the flat tensor; a chunk of a tensor
// starts at a multiple of it.
#define FUSEO1_BLOCK 256

#ifdef __cplusplus
}
#endif
#endif  // FUSEO1_TYPES_H_
