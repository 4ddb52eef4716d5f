// SPDX-License-Identifier: Apache-2.0
// The general fuse's C ABI (include/fuseo1/cuda.h).
#include "decide.cuh"
#include "fuse_general.cuh"
#include "instances.cuh"
#include "launch.cuh"

namespace fuseo1 {
namespace {

// Rounds `params` to Real; false if they are outside the contract.
template <class Real>
bool round_params(const fuseo1_fuse_params& params, int64_t offset, int64_t count, FuseParams<Real>* to) {
  const double* const shares = params.shares ? params.shares : params.weights;
  for (int i = 0; i < params.targets; ++i) {
    to->weights[i] = static_cast<Real>(params.weights[i]), to->shares[i] = static_cast<Real>(shares[i]);
  }
  to->divisor = static_cast<Real>(params.divisor), to->floor = static_cast<Real>(params.floor_divisor);
  to->scale = static_cast<Real>(params.scale), to->base_scale = static_cast<Real>(params.base_scale);
  to->elect = params.elect;
  to->masked = params.masked && params.targets;
  to->threshold = params.threshold, to->tie_limit = params.tie_limit;
  return to->selects.copy(params.selects, params.targets, offset, count);
}

template <class Real>
int fuse_in(const fuseo1_fuse_params& params, const Inputs& in, int64_t offset, const Output& out, int64_t* written,
            void* room, size_t bytes, void* stream) {
  FuseParams<Real> rounded = {};
  if (!round_params(params, offset, in.numel, &rounded)) return FUSEO1_BAD_ARGUMENT;
  if (in.numel == 0) return FUSEO1_OK;
  const int status = decide(in, offset, &rounded.selects, room, bytes, stream);
  if (status) return status;
  return with_instance(in, [&](auto instance) {
    using Chosen = decltype(instance);
    return launch("fuse_general", in, fuse_general<Chosen::kTargets, typename Chosen::Elements, Real>, blocks_of(in),
                  stream, in, rounded, offset, out, reinterpret_cast<Count*>(written));
  });
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
  return params->elect == FUSEO1_ELECT_SUM ? fuse_in<float>(*params, in, offset, to, written, room, bytes, stream)
                                           : fuse_in<double>(*params, in, offset, to, written, room, bytes, stream);
}
