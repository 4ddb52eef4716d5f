// SPDX-License-Identifier: Apache-2.0
// The interface of every kind of survey to the C ABI (include/fuseo1/survey.h), and the functions that make each kind.
#ifndef FUSEO1_CPU_SURVEY_BASE_H_
#define FUSEO1_CPU_SURVEY_BASE_H_

#include <stdint.h>

#include <memory>

#include "fuseo1/survey.h"
#include "slabs.h"

// The callers have checked the arguments, and that the calls fit the phase.
struct fuseo1_survey {
  fuseo1_survey(int32_t targets, int64_t numel) : targets(targets), numel(numel) {}
  virtual ~fuseo1_survey() = default;
  fuseo1_survey(const fuseo1_survey&) = delete;

  // How many runs the sample has, and how many elements of it have been fed.
  virtual int64_t runs() const { return 0; }
  virtual int64_t sampled() const { return 0; }
  // The runs are every `stride`-th of the sample from `first` on; stride 0: it is not known which.
  virtual void add_sample(const fuseo1_operand*, int64_t /*count*/, int64_t /*first*/, int64_t /*stride*/) {}

  virtual void update(const fuseo1_operand* operands, int64_t offset, int64_t count, int threads) = 0;
  virtual void end_pass() = 0;
  virtual void lend(fuseo1::Loan) {}
  // Chunks are multiples of this.
  virtual int64_t row() const { return 1; }

  virtual void tell(fuseo1_survey_result* out) const = 0;
  // False if the survey has no such result.
  virtual bool tell_cuts(fuseo1_cut*) const { return false; }
  virtual bool tell_sums(double*) const { return false; }
  virtual bool tell_divergences(float*) const { return false; }
  // A target's mask, in lent memory; nullptr: none was kept.
  virtual const uint64_t* kept(int32_t /*target*/) const { return nullptr; }

  void run(const fuseo1_operand* operands, int threads);

  const int32_t targets;
  const int64_t numel;
  int phase = FUSEO1_SURVEY_SAMPLE;
  int passes = 0;
  int64_t fed = 0;  // elements that the pass has seen

 private:
  void gather_sample(const fuseo1_operand* operands);
};

namespace fuseo1 {

// Thrown when a pass did not see the data of an earlier one.
struct DataChanged {};

// Feeds runs of the sample, as fuseo1_survey_update does, every `stride`-th from `first` on; returns a status.
int update_sample(fuseo1_survey* survey, const fuseo1_operand* operands, int64_t count, int64_t first, int64_t stride);

std::unique_ptr<fuseo1_survey> top_k_survey(int32_t targets, int64_t numel, double select_topk, int64_t max_bytes);
std::unique_ptr<fuseo1_survey> magnitude_survey(int32_t targets, int64_t numel, const int64_t* ranks,
                                                int32_t per_target, const fuseo1_row_factors* rows, int64_t max_bytes);
std::unique_ptr<fuseo1_survey> norm_survey(int32_t targets, int64_t numel, const fuseo1_select* selects);
std::unique_ptr<fuseo1_survey> overlap_survey(int32_t targets, int64_t numel, const fuseo1_select* selects);
std::unique_ptr<fuseo1_survey> gram_survey(int32_t targets, int64_t numel, bool of_inputs);
std::unique_ptr<fuseo1_survey> divergence_survey(int64_t numel, int64_t row);

}  // namespace fuseo1
#endif  // FUSEO1_CPU_SURVEY_BASE_H_
