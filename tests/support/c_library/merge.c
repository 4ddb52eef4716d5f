// Merges two fine-tunes of a tensor into their base by SCE, select_topk 0.75, in mergekit's variant (arithmetic.md).
#include <fuseo1/fuse.h>
#include <fuseo1/survey.h>
#include <stdio.h>
#include <string.h>

int main(void) {
  const float base[] = {1, 2, 3, 4}, one[] = {5, 4, 4, 4.5f}, two[] = {3, 6, 2, 4};
  const float expected[] = {4, 5, 4, 4};  // the last is not selected: its variance is the least of the four
  const fuseo1_operand operands[] = {{base, FUSEO1_FP32}, {one, FUSEO1_FP32}, {two, FUSEO1_FP32}};

  fuseo1_survey* survey;
  fuseo1_survey_result learned;
  int status = fuseo1_survey_create(2, 4, 0.75, 1 << 22, &survey);
  if (status != FUSEO1_OK) return status;
  status = fuseo1_survey_run(survey, operands, 1);
  if (status == FUSEO1_OK) status = fuseo1_survey_result_of(survey, &learned);
  fuseo1_survey_destroy(survey);
  if (status != FUSEO1_OK) return status;

  const double sum = learned.energy[0] + learned.energy[1];
  const double weights[] = {learned.energy[0] / sum, learned.energy[1] / sum};
  fuseo1_fuse_params params = {.targets = 2, .weights = weights, .elect = FUSEO1_ELECT_SUM, .masked = 1};
  params.scale = params.base_scale = 1;
  params.floor_divisor = 1e-6;
  params.threshold = learned.threshold;
  params.tie_limit = learned.tie_limit;
  float merged[4];
  int64_t nonfinite;
  status = fuseo1_fuse(&params, operands, 0, 4, merged, FUSEO1_FP32, 1, &nonfinite);
  if (status != FUSEO1_OK) return status;

  printf("%g %g %g %g\n", merged[0], merged[1], merged[2], merged[3]);
  return memcmp(merged, expected, sizeof merged) != 0;
}
