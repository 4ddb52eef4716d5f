// SPDX-License-Identifier: Apache-2.0
// The instance of merge_fp32.h or merge_fp64.h that a fuse needs.
// Included only by the per-ISA sources; internal linkage throughout (see simd.h).
#ifndef FUSEO1_CPU_MERGE_BLOCK_H_
#define FUSEO1_CPU_MERGE_BLOCK_H_

#include "merge_fp32.h"
#include "merge_fp64.h"

namespace fuseo1 {
namespace {

class Merge {
 public:
  // `halves`: fp32 is not what the result is rounded to last.
  Merge(const fuseo1_fuse_params& params, bool halves) : params_(params), rounded_(params), halves_(halves) {
    switch (params.elect) {
      case FUSEO1_ELECT_SUM: {
        const bool signs = __builtin_signbit(rounded_.scale) || __builtin_signbit(rounded_.divisor) ||
                           __builtin_signbit(rounded_.floor);
        FUSEO1_UNROLL_TARGETS(signs ? 0 : params.targets, (fp32_ = merge_fp32<kTargets>))
        break;
      }
      case FUSEO1_ELECT_WEIGHTED:
        FUSEO1_UNROLL_TARGETS(params.targets, (fp64_ = merge_fp64<FUSEO1_ELECT_WEIGHTED, kTargets>))
        break;
      case FUSEO1_ELECT_COUNT:
        FUSEO1_UNROLL_TARGETS(params.targets, (fp64_ = merge_fp64<FUSEO1_ELECT_COUNT, kTargets>))
        break;
      default:
        FUSEO1_UNROLL_TARGETS(params.targets, (fp64_ = merge_fp64<FUSEO1_ELECT_NONE, kTargets>))
    }
  }

  // A block of which d are z; `chosen` nullptr: every element is selected by its score.
  void operator()(const Block& block, const Mask* chosen, Parts* parts) const {
    fp32_ ? fp32_(rounded_, block, chosen, parts) : fp64_(params_, halves_, block, chosen, parts);
  }

 private:
  const fuseo1_fuse_params& params_;
  Fp32Numbers rounded_;
  bool halves_;
  void (*fp32_)(const Fp32Numbers&, const Block&, const Mask*, Parts*) = nullptr;
  void (*fp64_)(const fuseo1_fuse_params&, bool, const Block&, const Mask*, Parts*) = nullptr;
};

}  // namespace
}  // namespace fuseo1
#endif  // FUSEO1_CPU_MERGE_BLOCK_H_
