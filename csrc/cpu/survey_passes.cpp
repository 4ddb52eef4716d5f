// SPDX-License-Identifier: Apache-2.0
// survey's C ABI: the passes over a tensor and what each of them learns (include/fuseo1/survey.h).
//
// One read is the rule. A sample brackets the threshold; the scan sums the energies above the bracket and keeps the few
// candidates inside it, among which the threshold is then found. Should the bracket miss, or hold too many equal
// scores, the exact path finds the threshold by histograms and sums the energies in a pass of their own.
#include <math.h>

#include <memory>
#include <new>

#include "candidates.h"
#include "dispatch.h"
#include "fuseo1/survey.h"
#include "parallel.h"

namespace fuseo1 {
namespace {

constexpr int64_t kRun = 32;               // sampled elements per run: a cache line of bf16
constexpr int64_t kMostSampled = 1 << 16;  // of tensors up to 32 Mi elements; then one in 512
constexpr int64_t kLeastSampled = 1 << 9;
constexpr int64_t kElementsPerSample = 32;
constexpr double kBracketDeviations = 4.0;  // of the sample's rank; runs of neighbours are not quite independent
constexpr int kLowBits = 15;
constexpr uint32_t kNothing = 0x7fffffff;  // a threshold above every score

}  // namespace
}  // namespace fuseo1

using namespace fuseo1;

struct fuseo1_survey {
  fuseo1_survey(int32_t n, int64_t numel, double topk, int64_t max_candidates)
      : targets(n), numel(numel), select_topk(topk), max_candidates(max_candidates) {
    if (topk == 0.0 || topk == 1.0 || numel == 0) {
      settle(topk == 1.0 ? 0 : kNothing, topk == 1.0 ? numel : 0, topk == 1.0 ? numel - 1 : -1);
      phase = numel ? FUSEO1_SURVEY_ENERGY : FUSEO1_SURVEY_DONE;
    }
  }

  int64_t sample_runs() const {
    if (phase != FUSEO1_SURVEY_SAMPLE) return 0;
    const int64_t wanted = std::min(numel / kElementsPerSample, std::max(kMostSampled, numel >> 9));
    return wanted < kLeastSampled ? 0 : wanted / kRun;
  }

  // Runs are spread evenly, each moved by a hash within its stretch so that no row length of a matrix resonates, and
  // start on cache lines.
  int64_t sample_start(int64_t run) const {
    const int64_t stretch = numel / std::max<int64_t>(sample_runs(), 1);
    const uint64_t hash = static_cast<uint64_t>(run + 1) * 0x9e3779b97f4a7c15u >> 33;
    return (run * stretch + static_cast<int64_t>(hash % static_cast<uint64_t>(stretch - kRun + 1))) / kRun * kRun;
  }

  void update(const fuseo1_operand* operands, int64_t offset, int64_t count, int threads);
  void end_pass();
  void run(const fuseo1_operand* operands, int threads);

  const int32_t targets;
  const int64_t numel;
  const double select_topk;
  const int64_t max_candidates;

  int phase = FUSEO1_SURVEY_SAMPLE;
  int passes = 0;
  int64_t fed = 0;  // elements that the pass has seen
  int64_t nonzero = -1, selected = 0, tie_limit = -1;
  uint32_t threshold = kNothing;
  Totals totals;

 private:
  // One thread's share of a pass; kept from chunk to chunk.
  struct Share {
    explicit Share(int targets) : candidates(targets) {}
    Totals totals;
    Candidates candidates;
    std::vector<uint32_t> scores;
    std::vector<int64_t> histogram;
    int64_t zeros = 0;
  };

  void settle(uint32_t at, int64_t k, int64_t last_tie) { threshold = at, selected = k, tie_limit = last_tie; }
  void enter(int next);
  void set_bracket();
  bool finish_scan();
  void finish_high();
  void finish_low();
  void finish_ties();
  Bracket energy_bracket(int64_t index) const;
  void scan_segment(const Chunk& chunk, Share& share, int64_t begin, int64_t end, Bracket within);
  void score_segment(const Chunk& chunk, Share& share, int64_t begin, int64_t end);
  void merge_totals();
  Cut select(int64_t count, Bracket within);
  std::vector<int64_t> merged_histogram() const;

  std::vector<std::unique_ptr<Share>> shares;  // by thread
  std::vector<uint32_t> sample;
  Bracket bracket = {1, kInfBits};
  std::atomic<int64_t> candidate_count{0};
  uint32_t high_bin = 0;
  int64_t wanted = 0;        // how many of the current bin, or of the ties, are selected
  int64_t cut_segment = -1;  // where the ties are cut; -1: nowhere
  std::unique_ptr<std::atomic<int64_t>[]> segment_ties;
};

void fuseo1_survey::enter(int next) {
  phase = next;
  fed = 0;
  shares.clear();
  candidate_count = 0;
  if (next == FUSEO1_SURVEY_TIES) segment_ties.reset(new std::atomic<int64_t>[(numel + kSegment - 1) / kSegment]());
}

void fuseo1_survey::set_bracket() {
  std::vector<uint32_t> nonzeros;
  for (uint32_t v : sample) {
    if (v) nonzeros.push_back(v);
  }
  sample = {};
  const double m = static_cast<double>(nonzeros.size());
  const double rank = select_topk * m;
  const double margin = 16 + kBracketDeviations * sqrt(rank * (1 - select_topk));
  const auto at_rank = [&](double r) {
    const auto nth = nonzeros.begin() + static_cast<int64_t>(r);
    std::nth_element(nonzeros.begin(), nth, nonzeros.end(), std::greater<uint32_t>());
    return *nth;
  };
  if (rank - margin >= 0) bracket.high = at_rank(rank - margin);
  if (rank + margin < m) bracket.low = at_rank(rank + margin);
}

void fuseo1_survey::scan_segment(const Chunk& chunk, Share& share, int64_t begin, int64_t end, Bracket within) {
  // Beyond the bound a scan has failed and need not go on; the cut's segment is needed whole.
  if (phase == FUSEO1_SURVEY_SCAN && candidate_count > max_candidates) return;
  const int64_t before = share.candidates.count();
  share.totals.candidates = share.candidates.reserve(end - begin);
  kernels().scan(chunk, begin, end, within, &share.totals);
  share.candidates.filled_to(share.totals.candidates);
  candidate_count += share.candidates.count() - before;
}

void fuseo1_survey::score_segment(const Chunk& chunk, Share& share, int64_t begin, int64_t end) {
  share.scores.resize(kSegment);
  kernels().score(chunk, begin, end, share.scores.data());
  const uint32_t* v = share.scores.data();
  const int64_t n = end - begin;
  if (phase == FUSEO1_SURVEY_HIGH) {
    share.histogram.resize((kInfBits >> kLowBits) + 1);
    for (int64_t j = 0; j < n; ++j) {
      ++share.histogram[v[j] >> kLowBits];
      share.zeros += v[j] == 0;
    }
  } else if (phase == FUSEO1_SURVEY_LOW) {
    share.histogram.resize(1 << kLowBits);
    for (int64_t j = 0; j < n; ++j) {
      if (v[j] >> kLowBits == high_bin) ++share.histogram[v[j] & ((1u << kLowBits) - 1)];
    }
  } else {
    segment_ties[(chunk.offset + begin) / kSegment] += std::count(v, v + n, threshold);
  }
}

void fuseo1_survey::merge_totals() {
  for (const auto& share : shares) {
    const Totals& mine = share->totals;
    for (int i = 0; i < targets + 2; ++i) totals.nonfinite[i] += mine.nonfinite[i];
    for (int i = 0; i < targets; ++i) {
      for (int e = 0; e < kExponents; ++e) totals.bins[i][e] += mine.bins[i][e];
    }
  }
}

Cut fuseo1_survey::select(int64_t count, Bracket within) {
  std::vector<const Candidates*> lists;
  std::vector<Totals*> sums;
  for (const auto& share : shares) {
    lists.push_back(&share->candidates);
    sums.push_back(&share->totals);
  }
  return select_candidates(lists, sums, count, within);
}

std::vector<int64_t> fuseo1_survey::merged_histogram() const {
  std::vector<int64_t> sum;
  for (const auto& share : shares) {
    sum.resize(std::max(sum.size(), share->histogram.size()));
    for (size_t b = 0; b < share->histogram.size(); ++b) sum[b] += share->histogram[b];
  }
  return sum;
}

void fuseo1_survey::update(const fuseo1_operand* operands, int64_t offset, int64_t count, int threads) {
  const Chunk chunk = {operands, targets, offset};
  if (phase == FUSEO1_SURVEY_SAMPLE) {
    const DefaultFloatingPoint guard;
    const size_t before = sample.size();
    sample.resize(before + static_cast<size_t>(count));
    kernels().score(chunk, 0, count, sample.data() + before);
    return;
  }
  fed += count;
  threads = static_cast<int>(std::min<int64_t>(threads, count / kSegment + 2));  // as many as there are segments
  while (shares.size() < static_cast<size_t>(threads)) shares.push_back(std::make_unique<Share>(targets));
  std::atomic<bool> out_of_memory{false};
  for_each_segment(offset, count, threads, [&](int thread, int64_t begin, int64_t end) {
    Share& share = *shares[thread];
    if (out_of_memory) return;
    try {
      if (phase == FUSEO1_SURVEY_SCAN) {
        scan_segment(chunk, share, begin, end, bracket);
      } else if (phase != FUSEO1_SURVEY_ENERGY) {
        score_segment(chunk, share, begin, end);
      } else if (threshold == 0) {
        kernels().energy(chunk, begin, end, &share.totals);
      } else {
        scan_segment(chunk, share, begin, end, energy_bracket(offset + begin));
      }
    } catch (const std::bad_alloc&) {
      out_of_memory = true;
    }
  });
  if (out_of_memory) throw std::bad_alloc();
}

// The selection is known: everything above the threshold, ties up to the cut. Only the cut's own segment has
// candidates.
Bracket fuseo1_survey::energy_bracket(int64_t index) const {
  if (threshold == kNothing) return {kNothing, kNothing - 1};
  const int64_t segment = index / kSegment;
  if (segment == cut_segment) return {threshold, threshold};
  const bool with_ties = cut_segment < 0 || segment < cut_segment;
  return with_ties ? Bracket{threshold, threshold - 1} : Bracket{threshold + 1, threshold};
}

bool fuseo1_survey::finish_scan() {
  if (candidate_count > max_candidates) return false;
  int64_t above = 0;
  nonzero = 0;
  for (const auto& share : shares) {
    nonzero += share->totals.nonzero;
    above += share->totals.above;
  }
  const int64_t k = static_cast<int64_t>(floor(select_topk * static_cast<double>(nonzero)));
  const int64_t inside = k - above;
  if (k > 0 && (inside < 1 || inside > candidate_count)) return false;
  if (k > 0) {
    const Cut cut = select(inside, bracket);
    settle(cut.threshold, k, cut.splits_ties ? cut.last_tie : numel - 1);
  } else {
    settle(kNothing, 0, -1);
  }
  merge_totals();
  return true;
}

void fuseo1_survey::finish_high() {
  int64_t zeros = 0;
  for (const auto& share : shares) zeros += share->zeros;
  nonzero = numel - zeros;
  const int64_t k = static_cast<int64_t>(floor(select_topk * static_cast<double>(nonzero)));
  if (k == 0) {
    settle(kNothing, 0, -1);
    enter(FUSEO1_SURVEY_ENERGY);
    return;
  }
  const std::vector<int64_t> histogram = merged_histogram();
  selected = wanted = k;
  high_bin = static_cast<uint32_t>(histogram.size()) - 1;
  for (; histogram[high_bin] < wanted; --high_bin) wanted -= histogram[high_bin];
  enter(FUSEO1_SURVEY_LOW);
}

void fuseo1_survey::finish_low() {
  const std::vector<int64_t> histogram = merged_histogram();
  uint32_t low = static_cast<uint32_t>(histogram.size()) - 1;
  for (; histogram[low] < wanted; --low) wanted -= histogram[low];
  settle(high_bin << kLowBits | low, selected, numel - 1);
  enter(wanted == histogram[low] ? FUSEO1_SURVEY_ENERGY : FUSEO1_SURVEY_TIES);
}

void fuseo1_survey::finish_ties() {
  for (cut_segment = 0; segment_ties[cut_segment] < wanted; ++cut_segment) wanted -= segment_ties[cut_segment];
  enter(FUSEO1_SURVEY_ENERGY);
}

void fuseo1_survey::end_pass() {
  passes += phase != FUSEO1_SURVEY_SAMPLE;
  switch (phase) {
    case FUSEO1_SURVEY_SAMPLE:
      set_bracket();
      enter(FUSEO1_SURVEY_SCAN);
      break;
    case FUSEO1_SURVEY_SCAN:
      if (finish_scan()) {
        enter(FUSEO1_SURVEY_DONE);
      } else {
        enter(FUSEO1_SURVEY_HIGH);
      }
      break;
    case FUSEO1_SURVEY_HIGH:
      finish_high();
      break;
    case FUSEO1_SURVEY_LOW:
      finish_low();
      break;
    case FUSEO1_SURVEY_TIES:
      finish_ties();
      break;
    default:
      if (cut_segment >= 0) tie_limit = select(wanted, {threshold, threshold}).last_tie;
      merge_totals();
      enter(FUSEO1_SURVEY_DONE);
  }
}

void fuseo1_survey::run(const fuseo1_operand* operands, int threads) {
  if (const int64_t runs = sample_runs()) {
    // The runs are gathered next to each other, in the operands' own dtypes.
    std::vector<std::vector<char>> gathered(targets + 1);
    std::vector<fuseo1_operand> views(targets + 1);
    for (int i = 0; i <= targets; ++i) {
      const int64_t size = element_size(operands[i].dtype);
      const char* from = static_cast<const char*>(operands[i].data);
      gathered[i].resize(runs * kRun * size);
      for (int64_t r = 0; r < runs; ++r) {
        __builtin_prefetch(from + sample_start(std::min(r + 16, runs - 1)) * size);
        memcpy(&gathered[i][r * kRun * size], from + sample_start(r) * size, kRun * size);
      }
      views[i] = {gathered[i].data(), operands[i].dtype};
    }
    update(views.data(), 0, runs * kRun, 1);
  }
  if (phase == FUSEO1_SURVEY_SAMPLE) end_pass();
  while (phase != FUSEO1_SURVEY_DONE) {
    update(operands, 0, numel, threads);
    end_pass();
  }
}

namespace {

template <class Body>
int guarded(const Body& body) {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return FUSEO1_OUT_OF_MEMORY;
  }
}

}  // namespace

extern "C" {

int fuseo1_survey_create(int32_t targets, int64_t numel, double select_topk, int64_t max_candidates,
                         fuseo1_survey** out) {
  if (!out || targets < 1 || targets > FUSEO1_MAX_TARGETS || numel < 0 || max_candidates < 0 ||
      !(select_topk >= 0.0 && select_topk <= 1.0)) {
    return FUSEO1_BAD_ARGUMENT;
  }
  return guarded([&] {
    *out = new fuseo1_survey(targets, numel, select_topk, max_candidates);
    return FUSEO1_OK;
  });
}

void fuseo1_survey_destroy(fuseo1_survey* survey) { delete survey; }

int fuseo1_survey_phase_of(const fuseo1_survey* survey) { return survey->phase; }

int fuseo1_survey_sample_shape(const fuseo1_survey* survey, int64_t* runs, int64_t* run_length) {
  *runs = survey->sample_runs();
  *run_length = kRun;
  return FUSEO1_OK;
}

int64_t fuseo1_survey_sample_start(const fuseo1_survey* survey, int64_t run) { return survey->sample_start(run); }

int fuseo1_survey_update(fuseo1_survey* survey, const fuseo1_operand* operands, int64_t offset, int64_t count,
                         int32_t threads) {
  if (!valid(operands, survey->targets, offset, count, threads)) return FUSEO1_BAD_ARGUMENT;
  if (survey->phase == FUSEO1_SURVEY_DONE) return FUSEO1_WRONG_PHASE;
  const bool sampling = survey->phase == FUSEO1_SURVEY_SAMPLE;
  if (!sampling && (count > survey->numel - offset || (count % kBlock && offset + count != survey->numel))) {
    return FUSEO1_BAD_ARGUMENT;
  }
  return guarded([&] {
    survey->update(operands, offset, count, threads);
    return FUSEO1_OK;
  });
}

int fuseo1_survey_end_pass(fuseo1_survey* survey) {
  const bool whole = survey->phase == FUSEO1_SURVEY_SAMPLE || survey->fed == survey->numel;
  if (survey->phase == FUSEO1_SURVEY_DONE || !whole) return FUSEO1_WRONG_PHASE;
  return guarded([&] {
    survey->end_pass();
    return FUSEO1_OK;
  });
}

int fuseo1_survey_run(fuseo1_survey* survey, const fuseo1_operand* operands, int32_t threads) {
  if (!valid(operands, survey->targets, 0, survey->numel, threads)) return FUSEO1_BAD_ARGUMENT;
  return guarded([&] {
    survey->run(operands, threads);
    return FUSEO1_OK;
  });
}

int fuseo1_survey_result_of(const fuseo1_survey* survey, fuseo1_survey_result* out) {
  if (survey->phase != FUSEO1_SURVEY_DONE) return FUSEO1_WRONG_PHASE;
  *out = {};
  out->nonzero = survey->nonzero;
  out->selected = survey->selected;
  out->threshold = survey->threshold;
  out->tie_limit = survey->tie_limit;
  out->passes = survey->passes;
  for (int i = 0; i < survey->targets; ++i) {
    for (int e = 0; e < kExponents; ++e) {
      out->energy[i] += ldexp(static_cast<double>(survey->totals.bins[i][e]), e - 149);
    }
    if (survey->selected == 0) out->energy[i] = 0.0;
  }
  for (int i = 0; i < survey->targets + 2; ++i) out->nonfinite[i] = survey->totals.nonfinite[i];
  return FUSEO1_OK;
}

}  // extern "C"
