// SPDX-License-Identifier: Apache-2.0
// survey's C ABI: the passes over a tensor and what each of them learns (include/fuseo1/survey.h).
//
// One read is the rule. A sample brackets the threshold; the scan sums the energies above the bracket and keeps the few
// candidates inside it, among which the threshold is then found. Should the bracket miss, or hold too many equal
// scores, the exact path finds the threshold by histograms and sums the energies in a pass of their own.
#include <math.h>
#include <string.h>

#include <memory>
#include <new>

#include "dispatch.h"
#include "fuseo1/survey.h"
#include "parallel.h"
#include "sampling.h"
#include "survey_memory.h"

namespace fuseo1 {
namespace {

constexpr uint32_t kNothing = 0x7fffffff;   // a threshold above every score
constexpr int64_t kGatherBytes = 72 << 10;  // sampled elements gathered at a time

// A pass did not see what an earlier one saw.
struct DataChanged {};

// The place at which `wanted` of the counts are reached; takes those before it off `wanted`.
template <class Counts>
auto reach(Counts first, Counts end, int64_t* wanted) {
  for (; first != end && *first < *wanted; ++first) *wanted -= *first;
  if (first == end) throw DataChanged();
  return first;
}

}  // namespace
}  // namespace fuseo1

using namespace fuseo1;

struct fuseo1_survey {
  fuseo1_survey(int32_t n, int64_t numel, double topk, int64_t max_bytes)
      : targets(n), numel(numel), select_topk(topk), max_bytes(max_bytes), stretch(tie_stretch(numel, n)) {
    if (topk == 0.0 || topk == 1.0 || numel == 0) {
      settle(topk == 1.0 ? 0 : kNothing, topk == 1.0 ? numel : 0, topk == 1.0 ? numel - 1 : -1);
      phase = numel ? FUSEO1_SURVEY_ENERGY : FUSEO1_SURVEY_DONE;
    }
  }

  int64_t runs() const { return phase == FUSEO1_SURVEY_SAMPLE ? sample_runs(numel, max_bytes) : 0; }
  int64_t sample_left() const { return runs() * run_length(numel) - static_cast<int64_t>(sample.size()); }

  void add_sample(const fuseo1_operand* operands, int64_t count);
  void update(const fuseo1_operand* operands, int64_t offset, int64_t count, int threads);
  void end_pass();
  void run(const fuseo1_operand* operands, int threads);

  const int32_t targets;
  const int64_t numel;
  const double select_topk;
  const int64_t max_bytes;

  int phase = FUSEO1_SURVEY_SAMPLE;
  int passes = 0;
  int64_t fed = 0;  // elements that the pass has seen
  int64_t nonzero = -1, selected = 0, tie_limit = -1;
  uint32_t threshold = kNothing;
  Totals totals;
  Loan loan;  // for the slabs of SCAN

 private:
  void settle(uint32_t at, int64_t k, int64_t last_tie) { threshold = at, selected = k, tie_limit = last_tie; }
  void enter(int next);
  void begin_pass(int most_threads);
  bool finish_scan();
  void finish_high();
  void finish_low();
  void finish_ties();
  void scan(const Chunk& chunk, Share& share, int64_t begin, int64_t end, Bracket within);
  void add_energies(const Chunk& chunk, Share& share, int64_t begin, int64_t end);
  void score(const Chunk& chunk, Share& share, int64_t begin, int64_t end);
  void merge_totals();
  int64_t candidates() const;
  Cut select(int64_t count, Bracket within);
  const Pages<int64_t>& merged_histogram();
  void gather_sample(const fuseo1_operand* operands);

  int threads = 0;                             // of the pass, at most; 0: it has not begun
  std::vector<std::unique_ptr<Share>> shares;  // by thread
  std::unique_ptr<SlabPool> slabs;
  std::atomic<bool> overflowed{false};  // more candidates than slabs
  Pages<uint32_t> sample;
  Bracket bracket = {1, kInfBits};
  uint32_t high_bin = 0;
  int64_t wanted = 0;  // how many of the current bin, or of the ties, are selected
  const int64_t stretch;
  Pages<uint32_t> stretch_ties;
  int64_t cut_stretch = -1;  // where the ties are cut; -1: nowhere
};
static_assert(sizeof(fuseo1_survey) + (64 << 10) <= kFixedBytes);

void fuseo1_survey::enter(int next) {
  phase = next;
  fed = 0;
  threads = 0;
  shares.clear();
  slabs.reset();
  overflowed = false;
  stretch_ties = {};
  if (next == FUSEO1_SURVEY_TIES) stretch_ties.resize(static_cast<size_t>(stretches(numel, targets)));
}

// Fixes how many threads the pass has, whatever its chunks, and the memory that its candidates may take.
void fuseo1_survey::begin_pass(int most_threads) {
  const int64_t kept = cut_stretch < 0 ? 0 : stretch;
  const bool lent = phase == FUSEO1_SURVEY_SCAN && loan.bytes >= kLeastSlabs * kSlabBytes;
  Cost cost = cost_of(phase, numel, targets, kept);
  const int64_t left = max_bytes - kFixedBytes - cost.once;
  int64_t most = std::min<int64_t>(most_threads, (numel + kSegment - 1) / kSegment);
  if (lent) {
    cost.per_thread -= kLeastSlabs * kSlabBytes;
    most = std::min(most, loan.bytes / (kLeastSlabs * kSlabBytes));
  }
  threads = static_cast<int>(std::max<int64_t>(std::min(most, left / cost.per_thread), 1));
  if (lent) {
    slabs.reset(new SlabPool(loan));
  } else if (phase == FUSEO1_SURVEY_SCAN) {
    const int64_t for_slabs = left - threads * (cost.per_thread - kLeastSlabs * kSlabBytes);
    slabs.reset(new SlabPool(std::clamp<int64_t>(for_slabs / kSlabBytes, 0, slabs_for(numel, targets, threads))));
  } else if (kept) {
    slabs.reset(new SlabPool(slabs_for(kept, targets, threads)));
  }
}

void fuseo1_survey::scan(const Chunk& chunk, Share& share, int64_t begin, int64_t end, Bracket within) {
  // A scan with too many candidates has failed and need not go on.
  while (!overflowed && (begin = kernels().scan(chunk, begin, end, within, &share.totals)) < end) {
    if (!share.candidates.add_slab(slabs.get(), &share.totals)) overflowed = true;
  }
  share.candidates.filled_to(share.totals.candidates);
}

// The selection is known: everything above the threshold, and the ties before the cut's stretch. Those in it become
// candidates.
void fuseo1_survey::add_energies(const Chunk& chunk, Share& share, int64_t begin, int64_t end) {
  if (threshold == 0) {
    kernels().energy(chunk, begin, end, &share.totals);
    return;
  }
  const int64_t from = cut_stretch < 0 ? numel : cut_stretch * stretch;
  const int64_t first = std::clamp(from - chunk.offset, begin, end);
  const int64_t last = std::clamp(from + stretch - chunk.offset, begin, end);
  scan(chunk, share, begin, first, {threshold, threshold - 1});
  scan(chunk, share, first, last, {threshold, threshold});
  scan(chunk, share, last, end, {threshold + 1, threshold});
}

void fuseo1_survey::score(const Chunk& chunk, Share& share, int64_t begin, int64_t end) {
  const uint32_t* v = share.scores;
  for (int64_t at = begin; at < end; at += kPiece) {
    const int64_t n = std::min(kPiece, end - at);
    kernels().score(chunk, at, at + n, share.scores, &share.totals);
    if (phase == FUSEO1_SURVEY_HIGH) {
      for (int64_t j = 0; j < n; ++j) ++share.histogram[v[j] >> kLowBits];
      share.zeros += std::count(v, v + n, 0u);
    } else if (phase == FUSEO1_SURVEY_LOW) {
      for (int64_t j = 0; j < n; ++j) {
        if (v[j] >> kLowBits == high_bin) ++share.histogram[v[j] & (kLowBins - 1)];
      }
    } else {
      for (int64_t j = 0; j < n; j += kBlock) {
        const auto ties = std::count(v + j, v + std::min<int64_t>(j + kBlock, n), threshold);
        stretch_ties[(chunk.offset + at + j) / stretch] += static_cast<uint32_t>(ties);
      }
    }
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

int64_t fuseo1_survey::candidates() const {
  int64_t sum = 0;
  for (const auto& share : shares) sum += share->candidates.count();
  return sum;
}

Cut fuseo1_survey::select(int64_t count, Bracket within) {
  std::vector<const Candidates*> lists;
  std::vector<Totals*> sums;
  for (const auto& share : shares) {
    lists.push_back(&share->candidates);
    sums.push_back(&share->totals);
  }
  return select_candidates(lists, sums, count, within, numel);
}

const Pages<int64_t>& fuseo1_survey::merged_histogram() {
  Pages<int64_t>& sum = shares[0]->histogram;
  for (size_t i = 1; i < shares.size(); ++i) {
    for (size_t b = 0; b < sum.size(); ++b) sum[b] += shares[i]->histogram[b];
  }
  return sum;
}

void fuseo1_survey::add_sample(const fuseo1_operand* operands, int64_t count) {
  const DefaultFloatingPoint guard;
  const auto ignored = std::make_unique<Totals>();
  const size_t before = sample.size();
  sample.reserve(static_cast<size_t>(runs() * run_length(numel)));
  sample.resize(before + static_cast<size_t>(count));
  kernels().score({operands, targets, 0}, 0, count, sample.data() + before, ignored.get());
}

void fuseo1_survey::update(const fuseo1_operand* operands, int64_t offset, int64_t count, int most_threads) {
  const Chunk chunk = {operands, targets, offset};
  if (threads == 0) begin_pass(most_threads);
  fed += count;
  const int64_t bins = phase == FUSEO1_SURVEY_HIGH ? kHighBins : phase == FUSEO1_SURVEY_LOW ? kLowBins : 0;
  const int64_t segments = (offset + count + kSegment - 1) / kSegment - offset / kSegment;
  const int64_t busy = std::min<int64_t>({threads, most_threads, segments});
  while (static_cast<int64_t>(shares.size()) < busy) shares.push_back(std::make_unique<Share>(targets, bins));
  for_each_segment(offset, count, static_cast<int>(busy), [&](int thread, int64_t begin, int64_t end) {
    Share& share = *shares[thread];
    if (phase == FUSEO1_SURVEY_SCAN) {
      scan(chunk, share, begin, end, bracket);
    } else if (phase == FUSEO1_SURVEY_ENERGY) {
      add_energies(chunk, share, begin, end);
    } else {
      score(chunk, share, begin, end);
    }
  });
}

bool fuseo1_survey::finish_scan() {
  if (overflowed) return false;
  int64_t above = 0;
  nonzero = 0;
  for (const auto& share : shares) {
    nonzero += share->totals.nonzero;
    above += share->totals.above;
  }
  const int64_t k = static_cast<int64_t>(floor(select_topk * static_cast<double>(nonzero)));
  const int64_t inside = k - above;
  if (k > 0 && (inside < 1 || inside > candidates())) return false;
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
  const Pages<int64_t>& histogram = merged_histogram();
  selected = wanted = k;
  high_bin = static_cast<uint32_t>(histogram.rend() - reach(histogram.rbegin(), histogram.rend(), &wanted) - 1);
  enter(FUSEO1_SURVEY_LOW);
}

void fuseo1_survey::finish_low() {
  const Pages<int64_t>& histogram = merged_histogram();
  const auto at = reach(histogram.rbegin(), histogram.rend(), &wanted);
  const auto low = static_cast<uint32_t>(histogram.rend() - at - 1);
  settle(high_bin << kLowBits | low, selected, numel - 1);
  enter(wanted == *at ? FUSEO1_SURVEY_ENERGY : FUSEO1_SURVEY_TIES);
}

void fuseo1_survey::finish_ties() {
  cut_stretch = reach(stretch_ties.begin(), stretch_ties.end(), &wanted) - stretch_ties.begin();
  enter(FUSEO1_SURVEY_ENERGY);
}

void fuseo1_survey::end_pass() {
  passes += phase != FUSEO1_SURVEY_SAMPLE;
  switch (phase) {
    case FUSEO1_SURVEY_SAMPLE:
      bracket = bracket_of(sample, static_cast<size_t>(run_length(numel)), select_topk);
      sample = {};
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
      if (cut_stretch >= 0 && candidates() < wanted) throw DataChanged();
      if (cut_stretch >= 0) tie_limit = select(wanted, {threshold, threshold}).last_tie;
      merge_totals();
      enter(FUSEO1_SURVEY_DONE);
  }
}

// Gathers the runs next to each other, in the operands' own dtypes, as many at a time as fit.
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
    add_sample(views.data(), here * length);
  }
}

void fuseo1_survey::run(const fuseo1_operand* operands, int most_threads) {
  if (runs()) gather_sample(operands);
  if (phase == FUSEO1_SURVEY_SAMPLE) end_pass();
  while (phase != FUSEO1_SURVEY_DONE) {
    update(operands, 0, numel, most_threads);
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
  } catch (const DataChanged&) {
    return FUSEO1_BAD_ARGUMENT;
  }
}

}  // namespace

extern "C" {

int fuseo1_survey_create(int32_t targets, int64_t numel, double select_topk, int64_t max_bytes, fuseo1_survey** out) {
  if (!out || targets < 1 || targets > FUSEO1_MAX_TARGETS || numel < 0 || max_bytes < 0 ||
      !(select_topk >= 0.0 && select_topk <= 1.0)) {
    return FUSEO1_BAD_ARGUMENT;
  }
  return guarded([&] {
    *out = new fuseo1_survey(targets, numel, select_topk, max_bytes);
    return FUSEO1_OK;
  });
}

void fuseo1_survey_destroy(fuseo1_survey* survey) { delete survey; }

void fuseo1_survey_lend(fuseo1_survey* survey, void* memory, int64_t bytes) {
  survey->loan = {static_cast<char*>(memory), bytes};
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
  const bool sampling = survey->phase == FUSEO1_SURVEY_SAMPLE;
  const int64_t left = sampling ? survey->sample_left() : survey->numel - offset;
  if (count > left || (!sampling && count % kBlock && count != left)) return FUSEO1_BAD_ARGUMENT;
  return guarded([&] {
    if (sampling) {
      survey->add_sample(operands, count);
    } else {
      survey->update(operands, offset, count, threads);
    }
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
