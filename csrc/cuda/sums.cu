// SPDX-License-Identifier: Apache-2.0
// The C ABI of the surveys of norms, overlaps and inner products (include/fuseo1/cuda.h).
#include "decide.cuh"
#include "gram.cuh"
#include "instances.cuh"
#include "launch.cuh"
#include "overlaps.cuh"

namespace fuseo1 {
namespace {

// `kind`: see norms.cuh.
int launch_norms(const Inputs& in, const Selects& selects, int32_t kind, SumsWork* work, void* stream) {
  return with_instance(in, [&](auto instance) {
    using Chosen = decltype(instance);
    return launch("add_norms", in, add_norms<Chosen::kTargets, typename Chosen::Elements>, blocks_of(in), stream, in,
                  selects, kind, work);
  });
}

int launch_overlaps(const Inputs& in, const Selects& selects, SumsWork* work, void* stream) {
  return with_instance(in, [&](auto instance) {
    using Chosen = decltype(instance);
    return launch("add_overlaps", in, add_overlaps<Chosen::kTargets, typename Chosen::Elements>, blocks_of(in), stream,
                  in, selects, work);
  });
}

// Surveys norms, or `overlaps`.
int survey_selected(bool overlaps, const fuseo1_operand* operands, int32_t targets, int64_t numel,
                    const fuseo1_select* selects, void* work, void* room, size_t bytes, fuseo1_cuda_sums* result,
                    void* stream) {
  Inputs in = {};
  Selects taken = {};
  if (!make_inputs(operands, targets, numel, &in) || !taken.copy(selects, targets, 0, numel) || !work || !result) {
    return FUSEO1_BAD_ARGUMENT;
  }
  for (int i = 0; i < targets; ++i) {
    if (taken.of[i].kind == FUSEO1_SELECT_BITS) return FUSEO1_BAD_ARGUMENT;
  }
  auto* const sums = static_cast<SumsWork*>(work);
  int status = clear(sums, sizeof *sums, in, stream);
  if (!status) status = decide(in, 0, &taken, room, bytes, stream);
  // With more than 8 targets, the norms of all elements and of the selected ones take a launch each.
  const int kinds = targets > 8 && taken.any && !overlaps ? 2 : 1;
  for (int kind = 0; kind < kinds && numel && !status; ++kind) {
    status = overlaps ? launch_overlaps(in, taken, sums, stream) : launch_norms(in, taken, kind, sums, stream);
  }
  return status ? status
                : launch("settle_norms", in, settle_norms, 1, stream, sums, targets, overlaps || taken.any,
                         numel ? kinds : 0, result);
}

// The inner products of `count` targets, in read number `pass`, from 1; the first counts elements that are not finite.
int gram_of(const Inputs& in, const GramTargets& targets, int32_t count, int32_t of_inputs, int32_t pass,
            SumsWork* work, fuseo1_cuda_sums* result, void* stream) {
  const auto add = [&](auto instance) {
    using Chosen = decltype(instance);
    using In = typename Chosen::Elements;
    const auto kernel = of_inputs ? add_gram<Chosen::kTargets, In, true> : add_gram<Chosen::kTargets, In, false>;
    return launch("add_gram", in, kernel, blocks_of(in), stream, in, targets, pass > 1, work);
  };
  int status = clear(&work->gram, sizeof work->gram, in, stream);
  if (!status && in.numel) status = all_bf16(in) ? with_few<AllBf16>(count, add) : with_few<Mixed>(count, add);
  if (status) return status;
  return launch("settle_gram", in, settle_gram, 1, stream, work, targets, count, in.targets, of_inputs,
                in.numel ? pass : 0, result);
}

// The inner products of more than kGramTargets: in groups of half as many, every two groups together.
int gram_by_halves(const Inputs& in, int32_t of_inputs, SumsWork* work, fuseo1_cuda_sums* result, void* stream) {
  constexpr int kHalf = kGramTargets / 2;
  int status = in.numel ? launch_count(in, work->nonfinite, stream) : FUSEO1_OK;
  int32_t pass = 1;
  for (int32_t a = 1; a + kHalf <= in.targets; a += kHalf) {
    for (int32_t b = a + kHalf; b <= in.targets && !status; b += kHalf) {
      GramTargets targets = {};
      int32_t count = 0;
      for (int32_t i = a; i < a + kHalf; ++i) targets.of[count++] = i;
      for (int32_t i = b; i < b + kHalf && i <= in.targets; ++i) targets.of[count++] = i;
      status = gram_of(in, targets, count, of_inputs, ++pass, work, result, stream);
    }
  }
  return status;
}

}  // namespace
}  // namespace fuseo1

using namespace fuseo1;

extern "C" int fuseo1_cuda_survey_norms(const fuseo1_operand* operands, int32_t targets, int64_t numel,
                                        const fuseo1_select* selects, void* work, void* room, size_t bytes,
                                        fuseo1_cuda_sums* result, void* stream) {
  return survey_selected(false, operands, targets, numel, selects, work, room, bytes, result, stream);
}

extern "C" int fuseo1_cuda_survey_overlaps(const fuseo1_operand* operands, int32_t targets, int64_t numel,
                                           const fuseo1_select* selects, void* work, void* room, size_t bytes,
                                           fuseo1_cuda_sums* result, void* stream) {
  return survey_selected(true, operands, targets, numel, selects, work, room, bytes, result, stream);
}

extern "C" int fuseo1_cuda_survey_gram(const fuseo1_operand* operands, int32_t targets, int64_t numel,
                                       int32_t of_inputs, void* work, fuseo1_cuda_sums* result, void* stream) {
  Inputs in = {};
  if (!make_inputs(operands, targets, numel, &in) || !work || !result) return FUSEO1_BAD_ARGUMENT;
  auto* const sums = static_cast<SumsWork*>(work);
  const int status = clear(sums, sizeof *sums, in, stream);
  if (status) return status;
  return targets <= kGramTargets ? gram_of(in, {{1, 2, 3, 4}}, targets, of_inputs != 0, 1, sums, result, stream)
                                 : gram_by_halves(in, of_inputs != 0, sums, result, stream);
}
