// SPDX-License-Identifier: Apache-2.0
// Picks the instance of a kernel for a call. One to four targets, and all bf16, have instances of their own; rare paths
// have only two.
#ifndef FUSEO1_CUDA_INSTANCES_CUH_
#define FUSEO1_CUDA_INSTANCES_CUH_

#include "block.cuh"

namespace fuseo1 {

inline bool all_bf16(const Inputs& in) {
  for (int i = 0; i <= in.targets; ++i) {
    if (in.operands[i].dtype != FUSEO1_BF16) return false;
  }
  return true;
}

template <int kN, class In>
struct Instance {
  static constexpr int kTargets = kN;
  using Elements = In;
};

// Calls f with the Instance for one to four targets.
template <class In, class F>
int with_few(int32_t targets, const F& f) {
  switch (targets) {
    case 1:
      return f(Instance<1, In>());
    case 2:
      return f(Instance<2, In>());
    case 3:
      return f(Instance<3, In>());
    default:
      return f(Instance<4, In>());
  }
}

// Calls f with the Instance for these inputs.
template <class F>
int with_instance(const Inputs& in, const F& f) {
  const auto of = [&](auto elements) {
    using In = decltype(elements);
    if (in.targets >= 1 && in.targets <= 4) return with_few<In>(in.targets, f);
    return in.targets <= 8 ? f(Instance<8, In>()) : f(Instance<16, In>());
  };
  return all_bf16(in) ? of(AllBf16()) : of(Mixed());
}

// The same for rare paths.
template <class F>
int with_rare_instance(const Inputs& in, const F& f) {
  return in.targets <= 8 ? f(Instance<8, Mixed>()) : f(Instance<16, Mixed>());
}

}  // namespace fuseo1
#endif  // FUSEO1_CUDA_INSTANCES_CUH_
