// SPDX-License-Identifier: Apache-2.0
// The survey of SCE: the passes over a tensor and what each of them computes (include/fuseo1/survey.h).
//
// Usually one read. A sample brackets the threshold; the scan sums the energies above the bracket and keeps the few
// candidates inside it, among which the threshold is then found. If the bracket misses, or holds too many equal scores,
// the exact path finds the threshold by histograms and sums the energies in a separate pass.
#include <math.h>

#include <memory>

#include "dispatch.h"
#include "memory.h"
#include "parallel.h"
#include "ranking.h"
#include "sampling.h"

namespace fuseo1 {
namespace {

class TopK final : public fuseo1_survey {
 public:
  TopK(int32_t n, int64_t numel, double topk, int64_t max_bytes)
      : fuseo1_survey(n, numel), select_topk_(topk), max_bytes_(max_bytes), stretch_(tie_stretch(numel, n)) {
    if (topk == 0.0 || topk == 1.0 || numel == 0) {
      ranking_.settle(topk == 1.0 ? 0 : kNothing, topk == 1.0 ? numel : 0, topk == 1.0 ? numel - 1 : -1);
      phase = numel ? FUSEO1_SURVEY_ENERGY : FUSEO1_SURVEY_DONE;
    }
  }

  int64_t runs() const override { return phase == FUSEO1_SURVEY_SAMPLE ? sample_runs(numel, max_bytes_) : 0; }
  int64_t sampled() const override { return static_cast<int64_t>(sample_.size()); }
  void add_sample(const fuseo1_operand* operands, int64_t count, int64_t first, int64_t stride) override;
  void update(const fuseo1_operand* operands, int64_t offset, int64_t count, int threads) override;
  void end_pass() override;
  void lend(Loan loan) override { loan_ = loan; }
  void tell(fuseo1_survey_result* out) const override;

 private:
  void enter(int next);
  void begin_pass(int most_threads);
  bool finish_scan();
  void finish_high();
  void scan(const Chunk& chunk, Share& share, int64_t begin, int64_t end, Bracket within);
  void add_energies(const Chunk& chunk, Share& share, int64_t begin, int64_t end);
  void score(const Chunk& chunk, Share& share, int64_t begin, int64_t end);
  void merge_totals();
  int64_t candidates() const;
  Cut select(int64_t count, Bracket within);
  const Pages<int64_t>& merged_histogram();

  const double select_topk_;
  const int64_t max_bytes_;
  const int64_t stretch_;
  int64_t nonzero_ = -1;
  Ranking ranking_;
  uint32_t likeliest_ = 1;  // score at the cut
  Totals totals_;
  Loan loan_;                                   // for the slabs of SCAN
  int threads_ = 0;                             // of the pass, at most; 0: the pass has not begun
  std::vector<std::unique_ptr<Share>> shares_;  // by thread
  std::unique_ptr<Room> own_;                   // for slabs beyond the loan
  std::unique_ptr<SlabPool> slabs_;
  std::atomic<bool> overflowed_{false};  // more candidates than slabs
  Pages<uint32_t> sample_;
  Pages<uint32_t> stretch_ties_;
};
static_assert(sizeof(TopK) + (64 << 10) <= kFixedBytes);

void TopK::enter(int next) {
  phase = next;
  fed = 0;
  threads_ = 0;
  shares_.clear();
  slabs_.reset();
  own_.reset();
  overflowed_ = false;
  stretch_ties_ = {};
  if (next == FUSEO1_SURVEY_TIES) stretch_ties_.resize(static_cast<size_t>(stretches(numel, targets)));
}

// Fixes the number of threads of the pass, for all its chunks, and the memory for its candidates.
void TopK::begin_pass(int most_threads) {
  const int64_t kept = ranking_.cut_stretch < 0 ? 0 : stretch_;
  const bool lent = phase == FUSEO1_SURVEY_SCAN && loan_.bytes >= kLeastSlabs * kSlabBytes;
  Cost cost = cost_of(phase, numel, targets, kept);
  const int64_t left = max_bytes_ - kFixedBytes - cost.once;
  int64_t most = std::min<int64_t>(most_threads, (numel + kSegment - 1) / kSegment);
  if (lent) {
    cost.per_thread -= kLeastSlabs * kSlabBytes;
    most = std::min(most, loan_.bytes / (kLeastSlabs * kSlabBytes));
  }
  threads_ = static_cast<int>(std::max<int64_t>(std::min(most, left / cost.per_thread), 1));
  int64_t own = kept ? mark_slabs(kept, targets) + threads_ : 0;
  if (phase == FUSEO1_SURVEY_SCAN) {
    const int64_t for_slabs = left - threads_ * (cost.per_thread - (lent ? 0 : kLeastSlabs * kSlabBytes));
    const int64_t all = mark_slabs(numel, targets) + threads_ - (lent ? loan_.bytes / kSlabBytes : 0);
    own = std::clamp<int64_t>(for_slabs / kSlabBytes, 0, std::max<int64_t>(all, 0));
  }
  own_.reset(new Room(static_cast<size_t>(own * kSlabBytes), !lent));
  slabs_.reset(new SlabPool(lent ? loan_ : Loan{}, {own_->start(), own_->bytes()}, kSlabBytes));
}

void TopK::scan(const Chunk& chunk, Share& share, int64_t begin, int64_t end, Bracket within) {
  // A scan with too many candidates has failed and stops.
  while (!overflowed_ && (begin = kernels().scan(chunk, begin, end, within, &share.totals)) < end) {
    if (!share.marks.add_slab(slabs_.get(), &share.totals)) overflowed_ = true;
  }
  share.marks.filled(share.totals);
}

// Adds the energies of what is known to be selected: everything above the threshold, and the ties before the stretch in
// which they are cut. The ties in that stretch become candidates.
void TopK::add_energies(const Chunk& chunk, Share& share, int64_t begin, int64_t end) {
  const uint32_t threshold = ranking_.threshold;
  if (threshold == 0) {
    kernels().energy(chunk, begin, end, &share.totals);
    return;
  }
  const int64_t from = ranking_.cut_stretch < 0 ? numel : ranking_.cut_stretch * stretch_;
  const int64_t first = std::clamp(from - chunk.offset, begin, end);
  const int64_t last = std::clamp(from + stretch_ - chunk.offset, begin, end);
  scan(chunk, share, begin, first, {threshold, threshold - 1});
  scan(chunk, share, first, last, {threshold, threshold});
  scan(chunk, share, last, end, {threshold + 1, threshold});
}

void TopK::score(const Chunk& chunk, Share& share, int64_t begin, int64_t end) {
  const uint32_t* v = share.scores;
  for (int64_t at = begin; at < end; at += kPiece) {
    const int64_t n = std::min(kPiece, end - at);
    kernels().score(chunk, at, at + n, share.scores, &share.totals);
    if (phase == FUSEO1_SURVEY_HIGH) {
      count_high(v, n, &share.histogram);
      share.zeros += std::count(v, v + n, 0u);
    } else if (phase == FUSEO1_SURVEY_LOW) {
      count_low(v, n, ranking_.high_bin, &share.histogram);
    } else {
      for (int64_t j = 0; j < n; j += kBlock) {
        const auto ties = std::count(v + j, v + std::min<int64_t>(j + kBlock, n), ranking_.threshold);
        stretch_ties_[(chunk.offset + at + j) / stretch_] += static_cast<uint32_t>(ties);
      }
    }
  }
}

void TopK::merge_totals() {
  for (const auto& share : shares_) {
    const Totals& mine = share->totals;
    for (int i = 0; i < targets + 2; ++i) totals_.nonfinite[i] += mine.nonfinite[i];
    for (int i = 0; i < targets; ++i) {
      for (int e = 0; e < kExponents; ++e) totals_.bins[i][e] += mine.bins[i][e];
    }
  }
}

int64_t TopK::candidates() const {
  int64_t sum = 0;
  for (const auto& share : shares_) sum += share->totals.candidate_count;
  return sum;
}

// Ends the selection among the candidates: adds the energies of those `count` that are selected.
Cut TopK::select(int64_t count, Bracket within) {
  std::vector<Marks*> lists;
  std::vector<Totals*> sums;
  for (const auto& share : shares_) {
    lists.push_back(&share->marks);
    sums.push_back(&share->totals);
  }
  const Cut cut = select_marks(lists, count, within, numel);
  add_selected_energies(lists, sums, targets, cut);
  return cut;
}

const Pages<int64_t>& TopK::merged_histogram() {
  Pages<int64_t>& sum = shares_[0]->histogram;
  for (size_t i = 1; i < shares_.size(); ++i) {
    for (size_t b = 0; b < sum.size(); ++b) sum[b] += shares_[i]->histogram[b];
  }
  return sum;
}

void TopK::add_sample(const fuseo1_operand* operands, int64_t count, int64_t, int64_t) {
  const DefaultFloatingPoint guard;
  const auto ignored = std::make_unique<Totals>();
  const size_t before = sample_.size();
  sample_.reserve(static_cast<size_t>(runs() * run_length(numel)));
  sample_.resize(before + static_cast<size_t>(count));
  kernels().score({operands, targets, 0}, 0, count, sample_.data() + before, ignored.get());
}

void TopK::update(const fuseo1_operand* operands, int64_t offset, int64_t count, int most_threads) {
  const Chunk chunk = {operands, targets, offset};
  if (threads_ == 0) begin_pass(most_threads);
  fed += count;
  const int64_t bins = phase == FUSEO1_SURVEY_HIGH ? kHighBins : phase == FUSEO1_SURVEY_LOW ? kLowBins : 0;
  const int64_t segments = (offset + count + kSegment - 1) / kSegment - offset / kSegment;
  const int64_t busy = std::min<int64_t>({threads_, most_threads, segments});
  while (static_cast<int64_t>(shares_.size()) < busy) {
    shares_.push_back(std::make_unique<Share>(targets, bins));
    const bool ties = phase == FUSEO1_SURVEY_ENERGY;
    shares_.back()->marks.expect(ties ? Bracket{ranking_.threshold, ranking_.threshold} : ranking_.bracket, likeliest_);
  }
  for_each_segment(offset, count, static_cast<int>(busy), [&](int thread, int64_t begin, int64_t end) {
    Share& share = *shares_[thread];
    if (phase == FUSEO1_SURVEY_SCAN) {
      scan(chunk, share, begin, end, ranking_.bracket);
    } else if (phase == FUSEO1_SURVEY_ENERGY) {
      add_energies(chunk, share, begin, end);
    } else {
      score(chunk, share, begin, end);
    }
  });
}

bool TopK::finish_scan() {
  if (overflowed_) return false;
  int64_t above = 0;
  nonzero_ = 0;
  for (const auto& share : shares_) {
    nonzero_ += share->totals.nonzero;
    above += share->totals.above;
  }
  const int64_t k = static_cast<int64_t>(floor(select_topk_ * static_cast<double>(nonzero_)));
  const int64_t inside = k - above;
  if (k > 0 && (inside < 1 || inside > candidates())) return false;
  if (k > 0) {
    const Cut cut = select(inside, ranking_.bracket);
    ranking_.settle(cut.threshold, k, cut.splits_ties ? cut.last_tie : numel - 1);
  } else {
    ranking_.settle(kNothing, 0, -1);
  }
  merge_totals();
  return true;
}

void TopK::finish_high() {
  int64_t zeros = 0;
  for (const auto& share : shares_) zeros += share->zeros;
  nonzero_ = numel - zeros;
  const int64_t k = static_cast<int64_t>(floor(select_topk_ * static_cast<double>(nonzero_)));
  if (k == 0) {
    ranking_.settle(kNothing, 0, -1);
    enter(FUSEO1_SURVEY_ENERGY);
    return;
  }
  ranking_.take_high(merged_histogram(), k);
  enter(FUSEO1_SURVEY_LOW);
}

void TopK::end_pass() {
  passes += phase != FUSEO1_SURVEY_SAMPLE;
  switch (phase) {
    case FUSEO1_SURVEY_SAMPLE:
      ranking_.bracket =
          bracket_of(sample_, static_cast<size_t>(run_length(numel)), select_topk_, kOfNonzero, &likeliest_);
      sample_ = {};
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
      enter(ranking_.take_low(merged_histogram(), numel) ? FUSEO1_SURVEY_TIES : FUSEO1_SURVEY_ENERGY);
      break;
    case FUSEO1_SURVEY_TIES:
      ranking_.take_ties(stretch_ties_);
      enter(FUSEO1_SURVEY_ENERGY);
      break;
    default:
      if (ranking_.cut_stretch >= 0) {
        if (candidates() < ranking_.wanted) throw DataChanged();
        ranking_.tie_limit = select(ranking_.wanted, {ranking_.threshold, ranking_.threshold}).last_tie;
      }
      merge_totals();
      enter(FUSEO1_SURVEY_DONE);
  }
}

void TopK::tell(fuseo1_survey_result* out) const {
  out->nonzero = nonzero_;
  out->selected = ranking_.selected;
  out->threshold = ranking_.threshold;
  out->tie_limit = ranking_.tie_limit;
  for (int i = 0; i < targets; ++i) {
    for (int e = 0; e < kExponents; ++e) {
      out->energy[i] += ldexp(static_cast<double>(totals_.bins[i][e]), e - 149);
    }
    if (ranking_.selected == 0) out->energy[i] = 0.0;
  }
  for (int i = 0; i < targets + 2; ++i) out->nonfinite[i] = totals_.nonfinite[i];
}

}  // namespace

std::unique_ptr<fuseo1_survey> top_k_survey(int32_t targets, int64_t numel, double select_topk, int64_t max_bytes) {
  return std::make_unique<TopK>(targets, numel, select_topk, max_bytes);
}

}  // namespace fuseo1
