// SPDX-License-Identifier: Apache-2.0
// The general fuse's C ABI (include/fuseo1/cuda.h).
#include "decide.cuh"
#include "fuse_general.cuh"
#include "instances.cuh"
#include "launch.cuh"

namespace fuseo1 {
namespace {

// False if `params` is outside the contract.
template <class Real>
bool tell(const fuseo1_fuse_params& params, int64_t offset, int64_t count, Told<Real>* told) {
  const double* const shares = params.shares ? params.shares : params.weights;
  for (int i = 0; i < params.targets; ++i) {
    told->weights[i] = static_cast<Real>(params.weights[i]), told->shares[i] = static_cast<Real>(shares[i]);
  }
  told->divisor = static_cast<Real>(params.divisor), told->floor = static_cast<Real>(params.floor_divisor);
  told->scale = static_cast<Real>(params.scale), told->base_scale = static_cast<Real>(params.base_scale);
  told->elect = params.elect;
  told->masked = params.masked && params.targets;
  told->threshold = params.threshold, told->tie_limit = params.tie_limit;
  return told->selects.copy(params.selects, params.targets, offset, count);
}

template <class Real>
int fuse_in(const fuseo1_fuse_params& params, const Inputs& in, int64_t offset, const Output& out, int64_t* written,
            void* room, size_t bytes, void* stream) {
  Told<Real> told = {};
  if (!tell(params, offset, in.numel, &told)) return FUSEO1_BAD_ARGUMENT;
  if (in.numel == 0) return FUSEO1_OK;
  const int status = decide(in, offset, &told.selects, room, bytes, stream);
  if (status) return status;
  return with_instance(in, [&](auto instance) {
    using Chosen = decltype(instance);
    return launch("fuse_general", in, fuse_general<Chosen::kTargets, typename Chosen::Elements, Real>, blocks_of(in),
                  stream, in, told, offset, out, reinterpret_cast<Count*>(written));
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
