// SPDX-License-Identifier: Apache-2.0
// survey's C ABI on the GPU (include/fuseo1/cuda.h): what is launched, in which order, and where it works.
#include "instances.cuh"
#include "launch.cuh"
#include "scan.cuh"
#include "settle.cuh"

namespace fuseo1 {
namespace {

constexpr int64_t kWorkspaceFloor = 2 << 20;
constexpr int64_t kAlign = 256;
// One in so many elements is sampled, at most kMostSampled; of small tensors one in 32, up to kSampledFloor. A sample
// of 2^20 makes a bracket of about 0.4 % of the elements: from there on a larger one costs more than it saves.
constexpr int64_t kElementsPerSampled = 128;
constexpr int64_t kSampledFloor = 65536, kMostSampled = 1 << 20;
// What a survey may take, in percent of its inputs' bytes as bf16.
constexpr int64_t kPercent = 3;

int64_t round_up(int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

int64_t runs_of(int64_t numel) {
  const int64_t wanted = std::min(std::max(kSampledFloor, numel / kElementsPerSampled), kMostSampled);
  return std::max<int64_t>(std::min(wanted, numel / 32) / kLane, 0);
}

// Bits that hold the place of every element, in whole digits; more than kMostPlaceBits if those do not.
int place_bits_of(int64_t numel) {
  int bits = kDigitBits;
  while (bits <= kMostPlaceBits && numel > int64_t{1} << bits) bits += kDigitBits;
  return bits;
}

// The parts of a workspace; `state` first.
struct Workspace {
  State* state;
  uint32_t* sample;
  uint32_t* stretches;
  Candidates candidates;
  int64_t bytes;

  // Lays them out from `start` (null: only to learn `bytes`).
  Workspace(void* start, int32_t targets, int64_t numel) {
    bytes = 0;
    char* const begin = static_cast<char*>(start);
    const auto take = [&](int64_t size) {
      char* const part = begin ? begin + bytes : nullptr;
      bytes += round_up(size);
      return static_cast<void*>(part);
    };
    state = static_cast<State*>(take(sizeof(State)));
    const int64_t before = bytes;
    stretches = static_cast<uint32_t*>(take((numel + kStretch - 1) / kStretch * 4));
    candidates.exponents = static_cast<uint8_t*>(take((numel + kBlock - 1) / kBlock * targets));
    const int64_t share = 2 * (targets + 1) * numel / 100 * kPercent - (bytes - before);
    candidates.place_bits = place_bits_of(numel);
    // Of more elements than words have places for, the exact path takes care.
    candidates.capacity =
        candidates.place_bits > kMostPlaceBits ? 0 : std::max(kWorkspaceFloor, share) / 8 / kWarp * kWarp;
    // The sample has told all when there are candidates.
    candidates.words = static_cast<uint64_t*>(take(std::max(candidates.capacity * 8, runs_of(numel) * kLane * 4)));
    sample = reinterpret_cast<uint32_t*>(candidates.words);
  }
};

bool needs_scores(double select_topk, int64_t numel) { return select_topk > 0 && select_topk < 1 && numel > 0; }

int64_t bytes_for(int32_t targets, int64_t numel, double select_topk) {
  return needs_scores(select_topk, numel) ? Workspace(nullptr, targets, numel).bytes : round_up(sizeof(State));
}

// Everything between the empty state and the known selection.
int select(const Inputs& in, double select_topk, const Workspace& work, void* stream) {
  State* const state = work.state;
  const int64_t blocks = (in.numel + kBlock - 1) / kBlock, runs = runs_of(in.numel);
  const int64_t warps_of_runs = (runs + kWarp - 1) / kWarp;
  int status = with_rare_instance(in, [&](auto instance) {
    constexpr int kN = decltype(instance)::kTargets;
    return launch("sample_scores", in, sample_scores<kN>, warps_of_runs, stream, in, state, work.sample, runs,
                  select_topk);
  });
  if (!status) {
    status = launch("measure_runs", in, measure_runs, warps_of_runs, stream, state, work.sample, runs, select_topk);
  }
  if (!status) {
    status = launch("refine_bracket", in, refine_bracket, warps_of_runs, stream, state, work.sample, runs * kLane);
  }
  if (!status) {
    status = with_instance(in, [&](auto instance) {
      using Chosen = decltype(instance);
      return launch("scan", in, scan<Chosen::kTargets, typename Chosen::Elements>, blocks, stream, in, state,
                    work.candidates, select_topk);
    });
  }
  const int64_t warps_of_candidates = (work.candidates.capacity / kWarp + 31) / 32;
  const int digits = kScoreDigits + work.candidates.place_bits / kDigitBits;
  for (int digit = 0; digit < digits && !status; ++digit) {
    status = launch("count_candidates", in, count_candidates, warps_of_candidates, stream, state, work.candidates,
                    digit, in.numel);
  }
  if (status) return status;
  return with_rare_instance(in, [&](auto instance) {
    constexpr int kN = decltype(instance)::kTargets;
    int result =
        launch("finish_candidates", in, finish_candidates<kN>, warps_of_candidates, stream, in, state, work.candidates);
    for (int digit = 0; digit < kOffsetDigits && !result; ++digit) {
      result = launch("count_digits", in, count_digits<kN>, blocks, stream, in, state, digit);
    }
    if (!result) result = launch("count_ties", in, count_ties<kN>, blocks, stream, in, state, work.stretches);
    if (!result) result = launch("energy_selected", in, energy_selected<kN>, blocks, stream, in, state);
    return result;
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
  int status =
      check(cudaMemsetAsync(work.state, 0, sizeof(State), static_cast<cudaStream_t>(stream)), "memset", numel, targets);
  if (!status && numel) {
    status = needs_scores(how.select_topk, numel)
                 ? select(in, how.select_topk, work, stream)
                 : with_instance(in, [&](auto instance) {
                     using Chosen = decltype(instance);
                     return launch("energy_all", in, energy_all<Chosen::kTargets, typename Chosen::Elements>,
                                   (numel + kBlock - 1) / kBlock, stream, in, work.state);
                   });
  }
  if (!status) {
    status = launch("settle", in, settle, 1, stream, work.state, targets, numel, how, result, params);
  }
  return status;
}
