// SPDX-License-Identifier: Apache-2.0
// The C ABI of SCE's survey on the GPU (include/fuseo1/cuda.h), and its launches in order.
#include "instances.cuh"
#include "launch.cuh"
#include "scan.cuh"
#include "settle.cuh"
#include "steps.cuh"

namespace fuseo1 {
namespace {

bool needs_scores(double select_topk, int64_t numel) { return select_topk > 0 && select_topk < 1 && numel > 0; }

int64_t bytes_for(int32_t targets, int64_t numel, double select_topk) {
  return needs_scores(select_topk, numel) ? Workspace(nullptr, targets, numel).bytes : round_up(sizeof(State));
}

// Finds the threshold and the energies, from an empty state.
int find_threshold(const Inputs& in, double select_topk, const Workspace& work, void* stream) {
  State* const state = work.state;
  int status = with_rare_instance(
      in, [&](auto instance) { return launch_bracket<decltype(instance)::kTargets>(in, work, select_topk, stream); });
  if (!status) {
    status = with_instance(in, [&](auto instance) {
      using Chosen = decltype(instance);
      return launch("scan", in, scan<Chosen::kTargets, typename Chosen::Elements>, blocks_of(in), stream, in, state,
                    work.candidates, select_topk);
    });
  }
  if (status) return status;
  return with_rare_instance(in, [&](auto instance) {
    constexpr int kN = decltype(instance)::kTargets;
    const int result = launch_waiting("finish_candidates", in, finish_candidates<kN>, warps_of_candidates(work), stream,
                                      in, state, work.candidates);
    return result ? result : launch_exactly<kN, true>(in, work, stream);
  });
}

}  // namespace
}  // namespace fuseo1

using namespace fuseo1;

extern "C" int fuseo1_cuda_workspace_bytes(int32_t targets, int64_t numel, double select_topk, size_t* bytes) {
  if (!bytes || targets < 1 || targets > FUSEO1_CUDA_MAX_TARGETS || numel < 0) return FUSEO1_BAD_ARGUMENT;
  *bytes = static_cast<size_t>(bytes_for(targets, numel, select_topk));
  return FUSEO1_OK;
}

extern "C" int fuseo1_cuda_survey_sce(const fuseo1_operand* operands, int32_t targets, int64_t numel,
                                      fuseo1_cuda_sce how, void* workspace, size_t bytes, fuseo1_cuda_survey* result,
                                      fuseo1_cuda_params* params, void* stream) {
  Inputs in = {};
  if (!make_inputs(operands, targets, numel, &in) || !(how.select_topk >= 0.0 && how.select_topk <= 1.0) ||
      !workspace || !result || !params || static_cast<int64_t>(bytes) < bytes_for(targets, numel, how.select_topk)) {
    return FUSEO1_BAD_ARGUMENT;
  }
  const Workspace work(workspace, targets, numel);
  int status = clear(work.state, sizeof(State), in, stream);
  if (!status && numel) {
    status = needs_scores(how.select_topk, numel)
                 ? find_threshold(in, how.select_topk, work, stream)
                 : with_instance(in, [&](auto instance) {
                     using Chosen = decltype(instance);
                     return launch("energy_all", in, energy_all<Chosen::kTargets, typename Chosen::Elements>,
                                   blocks_of(in), stream, in, work.state);
                   });
  }
  if (!status) {
    status = launch("settle", in, settle, 1, stream, work.state, targets, numel, how, result, params);
  }
  return status;
}
