// SPDX-License-Identifier: Apache-2.0
// The general fuse's C ABI (include/fuseo1/cuda.h).
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
  return to;
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
  return with_instance(in, [&](auto instance) {
    using Chosen = decltype(instance);
    return launch("fuse_general", in, fuse_general<Chosen::kTargets, typename Chosen::Elements>, blocks_of(in), stream,
                  in, params_of(*params), selects, offset, to, reinterpret_cast<Count*>(written));
  });
}
