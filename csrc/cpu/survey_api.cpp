// SPDX-License-Identifier: Apache-2.0
// survey's C ABI: checks arguments, calls the survey, turns exceptions into status codes.
#include <new>
#include <stdexcept>

#include "ranked_selects.h"
#include "survey/base.h"
#include "survey/sampling.h"

using namespace fuseo1;

namespace {

template <class Body>
int guarded(const Body& body) {
  try {
    body();
    return FUSEO1_OK;
  } catch (const std::bad_alloc&) {
    return FUSEO1_OUT_OF_MEMORY;
  } catch (const std::length_error&) {  // more than a vector can ever hold
    return FUSEO1_OUT_OF_MEMORY;
  } catch (const DataChanged&) {
    return FUSEO1_BAD_ARGUMENT;
  }
}

// Whether the tensor has whole rows of `row` elements.
bool valid_row(int64_t row, int64_t numel) { return row >= 1 && numel % row == 0; }

bool valid_rows(const fuseo1_row_factors& rows, int64_t numel) { return !rows.factors || valid_row(rows.row, numel); }

bool valid_selects(const fuseo1_select* selects, int32_t targets, int64_t numel) {
  const int64_t row = ranked_row(selects, targets);
  for (int i = 0; selects && i < targets; ++i) {
    const int32_t kind = selects[i].kind;
    if (kind < FUSEO1_SELECT_ALL || kind > FUSEO1_SELECT_RANKED || kind == FUSEO1_SELECT_BITS) return false;
    if (kind == FUSEO1_SELECT_CLAMP && !(selects[i].most >= 0)) return false;
    if (kind == FUSEO1_SELECT_RANKED && !valid_ranked(selects[i], row)) return false;
    if (kind == FUSEO1_SELECT_BAND && !valid_rows(selects[i].rows, numel)) return false;
  }
  return !row || numel % row == 0;
}

bool valid_size(int32_t targets, int64_t numel) { return targets >= 1 && targets <= FUSEO1_MAX_TARGETS && numel >= 0; }

}  // namespace

int fuseo1::update_sample(fuseo1_survey* survey, const fuseo1_operand* operands, int64_t count, int64_t first,
                          int64_t stride) {
  if (!valid(operands, survey->targets, 0, count, 1)) return FUSEO1_BAD_ARGUMENT;
  if (count > survey->runs() * run_length(survey->numel) - survey->sampled()) return FUSEO1_BAD_ARGUMENT;
  return guarded([&] { survey->add_sample(operands, count, first, stride); });
}

extern "C" {

int fuseo1_survey_create(int32_t targets, int64_t numel, double select_topk, int64_t max_bytes, fuseo1_survey** out) {
  if (!out || !valid_size(targets, numel) || max_bytes < 0 || !(select_topk >= 0.0 && select_topk <= 1.0)) {
    return FUSEO1_BAD_ARGUMENT;
  }
  return guarded([&] { *out = top_k_survey(targets, numel, select_topk, max_bytes).release(); });
}

int fuseo1_survey_create_magnitudes(int32_t targets, int64_t numel, const int64_t* ranks, int32_t per_target,
                                    const fuseo1_row_factors* rows, int64_t max_bytes, fuseo1_survey** out) {
  if (!out || !ranks || !valid_size(targets, numel) || per_target < 1 || per_target > INT32_MAX / targets ||
      max_bytes < 0 || (rows && !valid_rows(*rows, numel))) {
    return FUSEO1_BAD_ARGUMENT;
  }
  for (int r = 0; r < targets * per_target; ++r) {
    if (ranks[r] < 0) return FUSEO1_BAD_ARGUMENT;
  }
  return guarded([&] { *out = magnitude_survey(targets, numel, ranks, per_target, rows, max_bytes).release(); });
}

int fuseo1_survey_create_norms(int32_t targets, int64_t numel, const fuseo1_select* selects, fuseo1_survey** out) {
  if (!out || !valid_size(targets, numel) || !valid_selects(selects, targets, numel)) return FUSEO1_BAD_ARGUMENT;
  return guarded([&] { *out = norm_survey(targets, numel, selects).release(); });
}

int fuseo1_survey_create_overlaps(int32_t targets, int64_t numel, const fuseo1_select* selects, fuseo1_survey** out) {
  if (!out || !valid_size(targets, numel) || !valid_selects(selects, targets, numel)) return FUSEO1_BAD_ARGUMENT;
  return guarded([&] { *out = overlap_survey(targets, numel, selects).release(); });
}

int fuseo1_survey_create_gram(int32_t targets, int64_t numel, int32_t of_inputs, fuseo1_survey** out) {
  if (!out || !valid_size(targets, numel)) return FUSEO1_BAD_ARGUMENT;
  return guarded([&] { *out = gram_survey(targets, numel, of_inputs != 0).release(); });
}

int fuseo1_survey_create_divergences(int64_t numel, int64_t row, fuseo1_survey** out) {
  if (!out || !valid_size(1, numel) || !valid_row(row, numel)) return FUSEO1_BAD_ARGUMENT;
  return guarded([&] { *out = divergence_survey(numel, row).release(); });
}

void fuseo1_survey_destroy(fuseo1_survey* survey) { delete survey; }

void fuseo1_survey_lend(fuseo1_survey* survey, void* memory, int64_t bytes) {
  survey->lend({static_cast<char*>(memory), bytes});
}

int fuseo1_survey_phase_of(const fuseo1_survey* survey) { return survey->phase; }

int fuseo1_survey_sample_shape(const fuseo1_survey* survey, int64_t* runs, int64_t* run_length) {
  *runs = survey->runs();
  *run_length = fuseo1::run_length(survey->numel);
  return FUSEO1_OK;
}

int64_t fuseo1_survey_sample_start(const fuseo1_survey* survey, int64_t run) {
  return sample_start(survey->numel, survey->runs(), run);
}

int fuseo1_survey_update(fuseo1_survey* survey, const fuseo1_operand* operands, int64_t offset, int64_t count,
                         int32_t threads) {
  if (!valid(operands, survey->targets, offset, count, threads)) return FUSEO1_BAD_ARGUMENT;
  if (survey->phase == FUSEO1_SURVEY_DONE) return FUSEO1_WRONG_PHASE;
  if (survey->phase == FUSEO1_SURVEY_SAMPLE) return update_sample(survey, operands, count, 0, 0);
  const int64_t left = survey->numel - offset;
  if (count > left || (count % kBlock && count != left)) return FUSEO1_BAD_ARGUMENT;
  if (offset % survey->row() || count % survey->row()) return FUSEO1_BAD_ARGUMENT;
  return guarded([&] { survey->update(operands, offset, count, threads); });
}

int fuseo1_survey_end_pass(fuseo1_survey* survey) {
  const bool whole = survey->phase == FUSEO1_SURVEY_SAMPLE || survey->fed == survey->numel;
  if (survey->phase == FUSEO1_SURVEY_DONE || !whole) return FUSEO1_WRONG_PHASE;
  return guarded([&] { survey->end_pass(); });
}

int fuseo1_survey_run(fuseo1_survey* survey, const fuseo1_operand* operands, int32_t threads) {
  if (!valid(operands, survey->targets, 0, survey->numel, threads)) return FUSEO1_BAD_ARGUMENT;
  return guarded([&] { survey->run(operands, threads); });
}

int fuseo1_survey_result_of(const fuseo1_survey* survey, fuseo1_survey_result* out) {
  if (survey->phase != FUSEO1_SURVEY_DONE) return FUSEO1_WRONG_PHASE;
  *out = {};
  out->passes = survey->passes;
  survey->tell(out);
  return FUSEO1_OK;
}

int fuseo1_survey_cuts_of(const fuseo1_survey* survey, fuseo1_cut* cuts) {
  if (survey->phase != FUSEO1_SURVEY_DONE) return FUSEO1_WRONG_PHASE;
  return survey->tell_cuts(cuts) ? FUSEO1_OK : FUSEO1_BAD_ARGUMENT;
}

int fuseo1_survey_sums_of(const fuseo1_survey* survey, double* sums) {
  if (survey->phase != FUSEO1_SURVEY_DONE) return FUSEO1_WRONG_PHASE;
  return survey->tell_sums(sums) ? FUSEO1_OK : FUSEO1_BAD_ARGUMENT;
}

int fuseo1_survey_divergences_of(const fuseo1_survey* survey, float* divergences) {
  if (survey->phase != FUSEO1_SURVEY_DONE) return FUSEO1_WRONG_PHASE;
  return survey->tell_divergences(divergences) ? FUSEO1_OK : FUSEO1_BAD_ARGUMENT;
}

int fuseo1_survey_kept_of(const fuseo1_survey* survey, int32_t target, const uint64_t** bits) {
  if (survey->phase != FUSEO1_SURVEY_DONE) return FUSEO1_WRONG_PHASE;
  if (target < 0 || target >= survey->targets) return FUSEO1_BAD_ARGUMENT;
  *bits = survey->kept(target);
  return FUSEO1_OK;
}

}  // extern "C"
