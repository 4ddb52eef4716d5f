// SPDX-License-Identifier: Apache-2.0
// Surveys a tensor that is whole in memory.
#include "base.h"

#include <string.h>

#include "pages.h"
#include "sampling.h"

using namespace fuseo1;

namespace {

constexpr int64_t kGatherBytes = 72 << 10;  // sampled elements gathered at a time

}  // namespace

// Gathers the runs back to back, in the operands' own dtypes, as many at a time as fit.
void fuseo1_survey::gather_sample(const fuseo1_operand* operands) {
  const int64_t all = runs(), length = run_length(numel);
  int64_t run_bytes = 0;
  for (int i = 0; i <= targets; ++i) run_bytes += length * element_size(operands[i].dtype);
  const int64_t most = std::min(all, kGatherBytes / run_bytes);
  Pages<char> gathered(static_cast<size_t>(most * run_bytes));
  std::vector<fuseo1_operand> views(targets + 1);
  for (int64_t first = 0; first < all; first += most) {
    const int64_t here = std::min(most, all - first);
    char* to = gathered.data();
    for (int i = 0; i <= targets; ++i) {
      const int64_t size = element_size(operands[i].dtype);
      const char* from = static_cast<const char*>(operands[i].data);
      views[i] = {to, operands[i].dtype};
      for (int64_t r = first; r < first + here; ++r, to += length * size) {
        __builtin_prefetch(from + sample_start(numel, all, std::min(r + 16, all - 1)) * size);
        memcpy(to, from + sample_start(numel, all, r) * size, length * size);
      }
    }
    add_sample(views.data(), here * length, first, 1);
  }
}

void fuseo1_survey::run(const fuseo1_operand* operands, int threads) {
  if (runs()) gather_sample(operands);
  if (phase == FUSEO1_SURVEY_SAMPLE) end_pass();
  while (phase != FUSEO1_SURVEY_DONE) {
    update(operands, 0, numel, threads);
    end_pass();
  }
}
