// SPDX-License-Identifier: Apache-2.0
// The general fuse's C ABI (include/fuseo1/cuda.h).
#include <algorithm>
#include <iterator>
#include <type_traits>

#include "decide.cuh"
#include "fuse_general.cuh"
#include "instances.cuh"
#include "launch.cuh"

namespace fuseo1 {
namespace {

FuseParams params_of(const fuseo1_fuse_params& params) {
  const double* const shares = params.shares ? params.shares : params.weights;
  FuseParams to = {};
  for (int i = 0; i < params.targets; ++i) {
    to.weights[i] = params.weights[i], to.shares[i] = shares[i];
    if (params.alone) to.alone[i] = params.alone[i];
  }
  to.has_alone = params.alone != nullptr;
  to.divisor = params.divisor, to.floor = params.floor_divisor;
  to.scale = params.scale, to.base_scale = params.base_scale;
  to.elect = params.elect;
  to.masked = params.masked && params.targets;
  to.threshold = params.threshold, to.tie_limit = params.tie_limit;
  const FilterTerms terms = to.terms(params.targets);
  to.filter.set_factors(terms);
  to.filters = to.filter.set(terms);
  // A fixed divisor's factor is that of every set of survivors.
  if (terms.factors() == 1) std::fill(std::begin(to.filter.factors), std::end(to.filter.factors), to.filter.factors[0]);
  return to;
}

// Calls f with the kernel for these parameters. Few bf16 targets have one for each election.
template <class Chosen, class F>
int with_election(Chosen, const FuseParams& params, const F& f) {
  constexpr int kN = Chosen::kTargets;
  using In = typename Chosen::Elements;
  if constexpr (kN <= kMostInTable && std::is_same<In, AllBf16>::value) {
    if (!params.masked) {
      switch (params.elect) {
        case FUSEO1_ELECT_SUM:
          return f(fuse_general<kN, In, FUSEO1_ELECT_SUM>);
        case FUSEO1_ELECT_WEIGHTED:
          return f(fuse_general<kN, In, FUSEO1_ELECT_WEIGHTED>);
        case FUSEO1_ELECT_COUNT:
          return f(fuse_general<kN, In, FUSEO1_ELECT_COUNT>);
        default:
          return f(fuse_general<kN, In, FUSEO1_ELECT_NONE>);
      }
    }
  }
  return f(fuse_general<kN, In, kAnyElection>);
}

}  // namespace
}  // namespace fuseo1

using namespace fuseo1;

extern "C" int fuseo1_cuda_fuse_general(const fuseo1_fuse_params* params, const fuseo1_operand* operands,
                                        int64_t offset, int64_t count, void* out, int32_t out_dtype, int64_t* written,
                                        void* room, size_t bytes, void* stream) {
  Inputs in = {};
  Output to = {};
  if (!params || !written || (!params->weights && params->targets) || params->elect < FUSEO1_ELECT_SUM ||
      params->elect > FUSEO1_ELECT_NONE || !make_inputs(operands, params->targets, count, &in, 0) ||
      !make_output(out, out_dtype, offset, count, &to)) {
    return FUSEO1_BAD_ARGUMENT;
  }
  Selects selects = {};
  if (!selects.copy(params->selects, params->targets, offset, in.numel)) return FUSEO1_BAD_ARGUMENT;
  if (in.numel == 0) return FUSEO1_OK;
  const int status = decide(in, offset, &selects, room, bytes, stream);
  if (status) return status;
  const FuseParams taken = params_of(*params);
  return with_instance(in, [&](auto instance) {
    return with_election(instance, taken, [&](auto kernel) {
      return launch("fuse_general", in, kernel, blocks_of(in), stream, in, taken, selects, offset, to,
                    reinterpret_cast<Count*>(written));
    });
  });
}
