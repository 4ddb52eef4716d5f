// SPDX-License-Identifier: Apache-2.0
// Every call of fuseo1/cuda.h on a few small tensors, for ThreadSanitizer: every_kernel SEED.
#include <stdio.h>
#include <stdlib.h>

#include <initializer_list>
#include <vector>

#include "fuseo1/cuda.h"

extern "C" void emulation_seed(uint64_t seed);

namespace {

constexpr int64_t kNumel = 4100, kRow = 820;

void require(int status) {
  if (status != FUSEO1_OK) fprintf(stderr, "status %d: %s\n", status, fuseo1_cuda_last_error()), exit(2);
}

// Memory of a device.
struct Room {
  std::vector<uint64_t> words;
  explicit Room(size_t bytes) : words(bytes / 8 + 1) {}
  void* data() { return words.data(); }
  template <class T>
  T* as() {
    return static_cast<T*>(data());
  }
};

// Whether a survey's sample has an element (sample_start in scan.cuh).
bool is_sampled(int64_t element) {
  constexpr int64_t kRuns = kNumel / 32 / 8, kStretch = kNumel / kRuns;
  const int64_t run = element / kStretch;
  const auto hash = static_cast<int64_t>(static_cast<uint64_t>(run + 1) * 0x9e3779b97f4a7c15u >> 33);
  const int64_t start = (run * kStretch + hash % (kStretch - 7)) / 8 * 8;
  return run < kRuns && element >= start && element < start + 8;
}

// The base and 16 targets in bf16. An element of a target is one of a few `values`, so that there are ties; a `hidden`
// one is not like those of the sample, so that only the exact path finds a threshold.
struct Tensors {
  std::vector<uint16_t> elements[FUSEO1_CUDA_MAX_TARGETS + 1];
  fuseo1_operand operands[FUSEO1_CUDA_MAX_TARGETS + 1];
  Tensors(uint32_t values, bool hidden) {
    uint32_t random = 1;
    for (int i = 0; i <= FUSEO1_CUDA_MAX_TARGETS; ++i) {
      for (int64_t j = 0; j < kNumel; ++j) {
        random = random * 1664525u + 1013904223u;
        const bool alike = hidden && is_sampled(j);
        elements[i].push_back(static_cast<uint16_t>(alike ? 0x3f80 + i : 0x3f80 + 64 * i + (random >> 16) % values));
      }
      elements[i][7] = i == 1 ? 0x7f80u : 0x3f80u;  // one infinity
      operands[i] = {elements[i].data(), FUSEO1_BF16};
    }
  }
};

void sce(const Tensors& from, int32_t targets, double select_topk) {
  const fuseo1_cuda_sce how = {select_topk, 1};
  size_t bytes = 0;
  require(fuseo1_cuda_workspace_bytes(targets, kNumel, select_topk, &bytes));
  Room work(bytes), result(sizeof(fuseo1_cuda_survey)), params(sizeof(fuseo1_cuda_params)), out(kNumel * 2);
  auto* const survey = result.as<fuseo1_cuda_survey>();
  auto* const found = params.as<fuseo1_cuda_params>();
  require(fuseo1_cuda_survey_sce(from.operands, targets, kNumel, how, work.data(), bytes, survey, found, nullptr));
  require(fuseo1_cuda_fuse(found, from.operands, targets, 0, kNumel, out.data(), FUSEO1_BF16, survey, nullptr));
  printf("sce of %d: %lld selected in %d reads\n", targets, static_cast<long long>(survey->selected), survey->passes);
}

void small(const Tensors& from, double select_topk) {
  constexpr int64_t kCount = 5;
  std::vector<fuseo1_cuda_tensor> tensors(kCount);
  std::vector<Room> outs(kCount, Room(kNumel * 2));
  Room results(kCount * sizeof(fuseo1_cuda_survey));
  for (int64_t t = 0; t < kCount; ++t) {
    for (int i = 0; i <= 3; ++i) tensors[t].operands[i] = from.operands[i];
    tensors[t].numel = kNumel - 300 * t, tensors[t].out = outs[t].data(), tensors[t].out_dtype = FUSEO1_BF16;
  }
  require(
      fuseo1_cuda_merge_small(tensors.data(), kCount, 3, {select_topk, 1}, results.as<fuseo1_cuda_survey>(), nullptr));
}

void sums(const Tensors& from, int32_t targets, const fuseo1_select* selects) {
  size_t bytes = 0;
  require(fuseo1_cuda_deciding_bytes(selects, targets, kNumel, &bytes));
  Room work(FUSEO1_CUDA_SUMS_BYTES), room(bytes), result(sizeof(fuseo1_cuda_sums));
  auto* const to = result.as<fuseo1_cuda_sums>();
  require(
      fuseo1_cuda_survey_norms(from.operands, targets, kNumel, selects, work.data(), room.data(), bytes, to, nullptr));
  require(fuseo1_cuda_survey_overlaps(from.operands, targets, kNumel, selects, work.data(), room.data(), bytes, to,
                                      nullptr));
  for (int32_t of_inputs : {0, 1}) {
    require(fuseo1_cuda_survey_gram(from.operands, targets, kNumel, of_inputs, work.data(), to, nullptr));
  }
}

void magnitudes(const Tensors& from, fuseo1_row_factors rows) {
  const int64_t ranks[] = {10, 2000, 0, 4099};
  size_t bytes = 0;
  require(fuseo1_cuda_magnitudes_bytes(kNumel, &bytes));
  Room work(bytes), cuts(sizeof(fuseo1_cut) * 4), result(sizeof(fuseo1_cuda_sums));
  require(fuseo1_cuda_survey_magnitudes(from.operands, 2, kNumel, ranks, 2, rows, work.data(), bytes,
                                        cuts.as<fuseo1_cut>(), result.as<fuseo1_cuda_sums>(), nullptr));
}

void divergences(const Tensors& from) {
  Room found(kNumel / kRow * 4), result(sizeof(fuseo1_cuda_sums));
  require(fuseo1_cuda_survey_divergences(from.operands, kNumel, kRow, found.as<float>(), result.as<fuseo1_cuda_sums>(),
                                         nullptr));
}

void fuse_general(const Tensors& from, int32_t elect, const fuseo1_select* selects) {
  const double weights[] = {0.5, 0.25, 1.0};
  fuseo1_fuse_params params = {};
  params.targets = 3, params.weights = weights, params.elect = elect, params.scale = params.base_scale = 1.0;
  params.selects = selects;
  size_t bytes = 0;
  require(fuseo1_cuda_deciding_bytes(selects, 3, kNumel, &bytes));
  Room room(bytes), out(kNumel * 2), written(8);
  require(fuseo1_cuda_fuse_general(&params, from.operands, 0, kNumel, out.data(), FUSEO1_BF16, written.as<int64_t>(),
                                   room.data(), bytes, nullptr));
}

}  // namespace

int main(int, char** arguments) {
  emulation_seed(strtoull(arguments[1], nullptr, 10));
  std::vector<float> factors(kNumel / kRow, 0.5f);
  const fuseo1_row_factors rows = {factors.data(), kRow};
  fuseo1_select selects[3] = {};
  selects[0].kind = FUSEO1_SELECT_RANKED, selects[0].row = kRow, selects[0].low = 0.2, selects[0].span = 0.4;
  selects[1].kind = FUSEO1_SELECT_BAND, selects[1].keep = {0x3c000000u, 100}, selects[1].rows = rows;
  selects[1].drop = {0x7fffffffu, -1};
  selects[2].kind = FUSEO1_SELECT_DRAW, selects[2].key = 5, selects[2].limit = 1u << 31;
  for (bool hidden : {false, true}) {
    const Tensors from(hidden ? 3 : 4000, hidden);
    for (double select_topk : {1.0, 0.5, 0.1}) sce(from, 3, select_topk), small(from, select_topk);
    sce(from, 16, 0.3);
    sums(from, 3, selects), sums(from, 9, nullptr);
    magnitudes(from, {}), magnitudes(from, rows);
    divergences(from);
    for (int32_t elect : {FUSEO1_ELECT_SUM, FUSEO1_ELECT_WEIGHTED}) fuse_general(from, elect, selects);
  }
  return 0;
}
