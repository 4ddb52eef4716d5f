// SPDX-License-Identifier: Apache-2.0
// The C ABI of the survey of magnitudes (include/fuseo1/cuda.h).
#include "instances.cuh"
#include "magnitudes.cuh"
#include "steps.cuh"

namespace fuseo1 {
namespace {

// Finds the cut after the k largest of one target; k > 0 and numel > 0.
int find_rank(const OneTarget& in, int64_t k, const Workspace& work, void* stream) {
  const double share = static_cast<double>(std::min(k, in.numel)) / static_cast<double>(in.numel);
  const bool bf16 = in.operands[0].dtype == FUSEO1_BF16 && in.operands[in.target].dtype == FUSEO1_BF16;
  int status = launch_bracket<1>(in, work, share, stream);
  if (!status) {
    status = launch("scan_magnitudes", in, bf16 ? scan_magnitudes<AllBf16> : scan_magnitudes<Mixed>, blocks_of(in),
                    stream, in, work.state, work.candidates, k);
  }
  if (!status) {
    status = launch_waiting("find_candidate", in, find_candidate, warps_of_candidates(work), stream, work.state,
                            work.candidates, in.numel);
  }
  return status ? status : launch_exactly<1, false>(in, work, stream);
}

// The first read, of all targets: counts elements that are not finite.
int count_first(const Inputs& in, SumsWork* counts, fuseo1_cuda_sums* result, void* stream) {
  int status = clear(counts, sizeof *counts, in, stream);
  if (!status && in.numel) status = launch_count(in, counts->nonfinite, stream);
  return status ? status : launch("settle_nonfinite", in, settle_nonfinite, 1, stream, counts, in.numel > 0, result);
}

int64_t bytes_for(int64_t numel) { return Workspace(nullptr, 1, numel).bytes + round_up(sizeof(SumsWork)); }

}  // namespace
}  // namespace fuseo1

using namespace fuseo1;

extern "C" int fuseo1_cuda_magnitudes_bytes(int64_t numel, size_t* bytes) {
  if (!bytes || numel < 0) return FUSEO1_BAD_ARGUMENT;
  *bytes = static_cast<size_t>(bytes_for(numel));
  return FUSEO1_OK;
}

extern "C" int fuseo1_cuda_survey_magnitudes(const fuseo1_operand* operands, int32_t targets, int64_t numel,
                                             const int64_t* ranks, int32_t per_target, fuseo1_row_factors rows,
                                             void* workspace, size_t bytes, fuseo1_cut* cuts, fuseo1_cuda_sums* result,
                                             void* stream) {
  OneTarget in = {};
  if (!make_inputs(operands, targets, numel, &in) || !ranks || per_target < 1 || !workspace || !cuts || !result ||
      (rows.factors && (rows.row < 1 || numel % rows.row)) || static_cast<int64_t>(bytes) < bytes_for(numel)) {
    return FUSEO1_BAD_ARGUMENT;
  }
  for (int i = 0; i < targets * per_target; ++i) {
    if (ranks[i] < 0) return FUSEO1_BAD_ARGUMENT;
  }
  const Workspace work(workspace, 1, numel);
  auto* const counts = reinterpret_cast<SumsWork*>(static_cast<char*>(workspace) + work.bytes);
  in.doubtful = &counts->doubtful;
  in.rows = rows;
  int status = count_first(in, counts, result, stream);
  for (int i = 0; i < targets * per_target && !status; ++i) {
    in.target = i / per_target + 1;
    status = clear(work.state, sizeof(State), in, stream);
    if (!status && numel && ranks[i]) status = find_rank(in, ranks[i], work, stream);
    if (!status)
      status = launch("settle_cut", in, settle_cut, 1, stream, work.state, ranks[i], numel, cuts + i, result);
  }
  return status;
}
