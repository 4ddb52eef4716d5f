// SPDX-License-Identifier: Apache-2.0
// Picks the instance of merge_fp32.h or merge_fp64.h that a fuse needs.
// Included only by the per-ISA sources; internal linkage throughout (see simd.h).
#ifndef FUSEO1_CPU_KERNELS_MERGE_BLOCK_H_
#define FUSEO1_CPU_KERNELS_MERGE_BLOCK_H_

#include "merge_fp32.h"
#include "merge_fp64.h"

namespace fuseo1 {
namespace {

class Merge {
 public:
  // `to_odd`: the result will be rounded again, to fewer bits than fp32 has.
  Merge(const fuseo1_fuse_params& params, bool to_odd) : params_(params), rounded_(params), to_odd_(to_odd) {
    const bool signs =
        __builtin_signbit(params.scale) || __builtin_signbit(params.divisor) || __builtin_signbit(params.floor_divisor);
    const int targets = signs || (params.masked && params.elect != FUSEO1_ELECT_SUM) ? 0 : params.targets;
    if (params.elect == FUSEO1_ELECT_SUM) {
      FUSEO1_UNROLL_TARGETS(targets, (fp32_ = merge_fp32<kTargets>))
      return;
    }
    fp64_ = params.divisor != 0.0 ? fp64<true>(params.elect, targets) : fp64<false>(params.elect, targets);
  }

  // The block's d are z; `chosen` nullptr: every element is selected by score.
  void operator()(const Block& block, const Mask* chosen, float* merged) const {
    fp32_ ? fp32_(rounded_, to_odd_, block, chosen, merged) : fp64_(params_, to_odd_, block, chosen, merged);
  }

 private:
  using Fp64 = void(const fuseo1_fuse_params&, bool, const Block&, const Mask*, float*);

  template <bool kFixed>
  static Fp64* fp64(int elect, int targets) {
    switch (elect) {
      case FUSEO1_ELECT_WEIGHTED:
        FUSEO1_UNROLL_TARGETS(targets, return (merge_fp64<FUSEO1_ELECT_WEIGHTED, kTargets, kFixed>))
      case FUSEO1_ELECT_COUNT:
        FUSEO1_UNROLL_TARGETS(targets, return (merge_fp64<FUSEO1_ELECT_COUNT, kTargets, kFixed>))
      default:
        FUSEO1_UNROLL_TARGETS(targets, return (merge_fp64<FUSEO1_ELECT_NONE, kTargets, kFixed>))
    }
  }

  const fuseo1_fuse_params& params_;
  Fp32Numbers rounded_;
  bool to_odd_;
  void (*fp32_)(const Fp32Numbers&, bool, const Block&, const Mask*, float*) = nullptr;
  Fp64* fp64_ = nullptr;
};

}  // namespace
}  // namespace fuseo1
#endif  // FUSEO1_CPU_KERNELS_MERGE_BLOCK_H_
