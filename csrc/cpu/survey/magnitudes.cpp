// SPDX-License-Identifier: Apache-2.0
// The survey of magnitudes: one ranking per requested cut, all in the same passes over the tensor
// (include/fuseo1/survey.h). Usually one read, as for SCE (sce.cpp); only rankings whose bracket missed, or holds too
// many candidates, take the exact path.
#include <memory>

#include "dispatch.h"
#include "marks.h"
#include "parallel.h"
#include "ranking.h"
#include "sampling.h"

namespace fuseo1 {
namespace {

// Parts of max_bytes, as in memory.h; a thread's stack holds a block of 64 targets.
constexpr int64_t kSurveyBytes = 256 << 10;
constexpr int64_t kStackBytes = 128 << 10;
constexpr int64_t kLeastSlabs = 2;  // per thread and ranking of a scan

// One requested cut.
struct Part {
  int32_t target;
  int64_t k;
  Ranking ranking;
  uint32_t likeliest = 0;  // the sample's guess at the threshold
  bool sought = false;     // the current pass works on it
  std::atomic<bool> overflowed{false};
  std::unique_ptr<SlabPool> slabs;
  Pages<uint32_t> ties;  // by segment
};

// One thread's share of a pass, for one part.
struct PartShare {
  Ranked ranked;
  Marks marks;
  Pages<int64_t> histogram;
  int64_t zeros = 0;
};

struct Share {
  std::vector<PartShare> parts;
  std::vector<Ranked*> active;   // the rankings of a scan
  std::vector<uint32_t> scores;  // of a block, target by target
  int64_t nonfinite[FUSEO1_MAX_TARGETS + 2] = {};
};

class Magnitudes final : public fuseo1_survey {
 public:
  Magnitudes(int32_t n, int64_t numel, const int64_t* ranks, int32_t per_target, const fuseo1_row_factors* rows,
             int64_t max_bytes)
      : fuseo1_survey(n, numel), max_bytes_(max_bytes), parts_(static_cast<size_t>(n) * per_target), samples_(n) {
    if (rows && rows->factors) {
      factors_.assign(rows->factors, rows->factors + numel / rows->row);
      rows_ = {factors_.data(), rows->row};
    }
    for (size_t r = 0; r < parts_.size(); ++r) {
      Part& part = parts_[r];
      part.target = static_cast<int32_t>(r / per_target);
      part.k = ranks[r];
      part.sought = part.k > 0 && part.k < numel + has_factors();
      if (!part.sought) part.ranking.settle(part.k ? 0 : kNothing, part.k, -1);
    }
    // Elements that are not finite are counted in any case.
    enter(numel == 0 ? FUSEO1_SURVEY_DONE : sought() ? FUSEO1_SURVEY_SAMPLE : FUSEO1_SURVEY_SCAN);
  }

  int64_t runs() const override { return phase == FUSEO1_SURVEY_SAMPLE ? sample_runs(numel, max_bytes_ / targets) : 0; }
  int64_t sampled() const override { return static_cast<int64_t>(samples_[0].size()); }
  void add_sample(const fuseo1_operand* operands, int64_t count, int64_t first, int64_t stride) override;
  void update(const fuseo1_operand* operands, int64_t offset, int64_t count, int threads) override;
  void end_pass() override;
  void lend(Loan loan) override { loan_ = loan; }
  void tell(fuseo1_survey_result* out) const override {
    std::copy(nonfinite_, nonfinite_ + targets + 2, out->nonfinite);
  }
  bool tell_cuts(fuseo1_cut* cuts) const override {
    for (const Part& part : parts_) *cuts++ = {part.ranking.threshold, part.ranking.tie_limit};
    return true;
  }

 private:
  bool has_factors() const { return rows_.factors != nullptr; }
  const fuseo1_row_factors* rows() const { return has_factors() ? &rows_ : nullptr; }
  int64_t segments() const { return (numel + kSegment - 1) / kSegment; }
  int64_t sought() const {
    return std::count_if(parts_.begin(), parts_.end(), [](const Part& part) { return part.sought; });
  }
  bool is_scanned(const Part& part, int64_t segment) const {
    return part.sought && !part.overflowed && (phase == FUSEO1_SURVEY_SCAN || part.ranking.cut_stretch == segment);
  }
  template <class Count>
  int64_t sum(size_t r, const Count& count) const {
    int64_t all = 0;
    for (const auto& share : shares_) all += count(share->parts[r]);
    return all;
  }
  void enter(int next);
  void place_brackets(int threads);
  void begin_pass(int most_threads);
  void share_slabs(Loan lent, Loan own);
  void add_share();
  void scan(const Chunk& chunk, Share& share, int64_t begin, int64_t end);
  void score(const Chunk& chunk, Share& share, int64_t begin, int64_t end);
  bool scan_found(size_t r);
  bool high_found(size_t r);
  void find_last_tie(size_t r);
  bool settle_if_all(Part* part, int64_t nonzero);
  int64_t candidates(size_t r) const;
  Cut select(size_t r, int64_t wanted, Bracket within);
  const Pages<int64_t>& merged_histogram(size_t r);

  const int64_t max_bytes_;
  std::vector<Part> parts_;     // target by target
  std::vector<float> factors_;  // by row
  fuseo1_row_factors rows_ = {};
  std::vector<Pages<uint32_t>> samples_;        // by target
  Loan loan_;                                   // for the slabs of SCAN
  std::unique_ptr<Room> own_;                   // for slabs beyond the loan
  int threads_ = 0;                             // of the pass, at most; 0: the pass has not begun
  std::vector<std::unique_ptr<Share>> shares_;  // by thread
  int64_t nonfinite_[FUSEO1_MAX_TARGETS + 2] = {};
};

void Magnitudes::enter(int next) {
  phase = next;
  fed = 0;
  threads_ = 0;
  shares_.clear();
  own_.reset();
  for (Part& part : parts_) {
    part.overflowed = false;
    part.slabs.reset();
    part.ties = {};
    if (next == FUSEO1_SURVEY_TIES && part.sought) part.ties.resize(static_cast<size_t>(segments()));
  }
}

// Called when SCAN begins: only then is the number of threads known.
void Magnitudes::place_brackets(int threads) {
  const auto length = static_cast<size_t>(run_length(numel));
  std::atomic<size_t> next{0};
  in_parallel(std::min<int64_t>(threads, static_cast<int64_t>(parts_.size())), [&](int64_t) {
    for (size_t r; (r = next.fetch_add(1)) < parts_.size();) {
      Part& part = parts_[r];
      const double share = static_cast<double>(part.k) / static_cast<double>(numel);
      if (part.sought) {
        part.ranking.bracket = bracket_of(samples_[part.target], length, share, kOfAll, &part.likeliest);
      }
    }
  });
  samples_ = std::vector<Pages<uint32_t>>(targets);
}

// Fixes the number of threads of the pass, for all its chunks, and the memory for its candidates.
void Magnitudes::begin_pass(int most_threads) {
  if (phase == FUSEO1_SURVEY_SCAN) place_brackets(most_threads);
  const int64_t parts = std::max<int64_t>(sought(), 1), slab_each = parts * kMarkSlabBytes;
  const int64_t least = kLeastSlabs * slab_each;
  const bool lent = phase == FUSEO1_SURVEY_SCAN && loan_.bytes >= least;
  const int64_t share = static_cast<int64_t>(sizeof(Share) + parts_.size() * sizeof(PartShare)) + targets * kBlock * 4;
  int64_t once = 0, per_thread = kStackBytes + share;
  switch (phase) {
    case FUSEO1_SURVEY_SCAN:
      once = mark_selection_bytes(0);
      per_thread += mark_selection_bytes(1) - once + (lent ? 0 : least);
      break;
    case FUSEO1_SURVEY_HIGH:
      per_thread += parts * kHighBins * 8;
      break;
    case FUSEO1_SURVEY_LOW:
      per_thread += parts * kLowBins * 8;
      break;
    case FUSEO1_SURVEY_TIES:
      once = parts * segments() * 4;
      break;
    default:
      once = mark_selection_bytes(0) + slab_each;
      per_thread += mark_selection_bytes(1) - mark_selection_bytes(0) + slab_each;
  }
  const int64_t left = max_bytes_ - kSurveyBytes - once;
  int64_t most = std::min<int64_t>(most_threads, segments());
  if (lent) most = std::min(most, loan_.bytes / least);
  threads_ = static_cast<int>(std::max<int64_t>(std::min(most, left / per_thread), 1));

  if ((phase != FUSEO1_SURVEY_SCAN && phase != FUSEO1_SURVEY_ENERGY) || !sought()) return;
  int64_t bytes = (threads_ + 1) * slab_each;
  if (phase == FUSEO1_SURVEY_SCAN) {
    const int64_t all = slab_each * (mark_slabs(numel) + threads_) - (lent ? loan_.bytes : 0);
    bytes = std::clamp<int64_t>(left - threads_ * (per_thread - (lent ? 0 : least)), 0, std::max<int64_t>(all, 0));
  }
  own_.reset(new Room(static_cast<size_t>(bytes), !lent));
  share_slabs(lent ? loan_ : Loan{}, {own_->start(), own_->bytes()});
}

// Splits memory evenly, so that a part with too many candidates does not take the others'.
void Magnitudes::share_slabs(Loan lent, Loan own) {
  const auto each = [&](Loan all) { return all.bytes / sought() / kMarkSlabBytes * kMarkSlabBytes; };
  int64_t place = 0;
  for (Part& part : parts_) {
    if (!part.sought) continue;
    const auto share = [&](Loan all) { return Loan{all.start + place * each(all), each(all)}; };
    part.slabs.reset(new SlabPool(share(lent), share(own), kMarkSlabBytes));
    ++place;
  }
}

void Magnitudes::add_share() {
  auto share = std::make_unique<Share>();
  share->parts.resize(parts_.size());
  share->active.reserve(parts_.size());
  share->scores.resize(static_cast<size_t>(targets) * kBlock);
  const int64_t bins = phase == FUSEO1_SURVEY_HIGH ? kHighBins : phase == FUSEO1_SURVEY_LOW ? kLowBins : 0;
  for (size_t r = 0; r < parts_.size(); ++r) {
    const Ranking& ranking = parts_[r].ranking;
    Ranked& ranked = share->parts[r].ranked;
    ranked.target = parts_[r].target;
    ranked.bracket = phase == FUSEO1_SURVEY_SCAN ? ranking.bracket : Bracket{ranking.threshold, ranking.threshold};
    share->parts[r].marks.expect(ranked.bracket, parts_[r].likeliest);
    if (parts_[r].sought) share->parts[r].histogram.resize(static_cast<size_t>(bins));
  }
  shares_.push_back(std::move(share));
}

void Magnitudes::scan(const Chunk& chunk, Share& share, int64_t begin, int64_t end) {
  const int64_t segment = (chunk.offset + begin) / kSegment;
  while (begin < end) {
    share.active.clear();
    for (size_t r = 0; r < parts_.size(); ++r) {
      if (!is_scanned(parts_[r], segment)) continue;
      PartShare& mine = share.parts[r];
      if (has_room(mine.ranked) || mine.marks.add_slab(parts_[r].slabs.get(), &mine.ranked)) {
        share.active.push_back(&mine.ranked);
      } else {
        parts_[r].overflowed = true;  // its scan has failed and stops
      }
    }
    if (phase != FUSEO1_SURVEY_SCAN && share.active.empty()) return;
    begin = kernels().magnitudes.scan(chunk, begin, end, rows(), share.active.data(),
                                      static_cast<int>(share.active.size()), share.nonfinite);
  }
  for (PartShare& mine : share.parts) mine.marks.filled(mine.ranked);
}

void Magnitudes::score(const Chunk& chunk, Share& share, int64_t begin, int64_t end) {
  const int64_t segment = (chunk.offset + begin) / kSegment;
  for (int64_t at = begin; at < end; at += kBlock) {
    const int64_t n = std::min<int64_t>(kBlock, end - at);
    kernels().magnitudes.score(chunk, at, n, rows(), share.scores.data(), share.nonfinite);
    for (size_t r = 0; r < parts_.size(); ++r) {
      Part& part = parts_[r];
      if (!part.sought) continue;
      PartShare& mine = share.parts[r];
      const uint32_t* v = share.scores.data() + part.target * kBlock;
      if (phase == FUSEO1_SURVEY_HIGH) {
        count_high(v, n, &mine.histogram);
        mine.zeros += std::count(v, v + n, 0u);
      } else if (phase == FUSEO1_SURVEY_LOW) {
        count_low(v, n, part.ranking.high_bin, &mine.histogram);
      } else {
        part.ties[segment] += static_cast<uint32_t>(std::count(v, v + n, part.ranking.threshold));
      }
    }
  }
}

void Magnitudes::add_sample(const fuseo1_operand* operands, int64_t count, int64_t first, int64_t stride) {
  if (has_factors() && stride == 0) return;  // its rows are not known
  const DefaultFloatingPoint guard;
  const int64_t step = has_factors() ? run_length(numel) : kBlock;
  std::vector<uint32_t> scores(static_cast<size_t>(targets) * kBlock);
  int64_t ignored[FUSEO1_MAX_TARGETS + 2] = {};
  for (auto& sample : samples_) sample.reserve(static_cast<size_t>(runs() * run_length(numel)));
  for (int64_t at = 0; at < count; at += step) {
    const int64_t n = std::min(step, count - at);
    const int64_t start = has_factors() ? sample_start(numel, runs(), first + at / step * stride) : 0;
    kernels().magnitudes.score({operands, targets, start - at}, at, n, rows(), scores.data(), ignored);
    for (int i = 0; i < targets; ++i) {
      const uint32_t* v = scores.data() + i * kBlock;
      samples_[i].insert(samples_[i].end(), v, v + n);
    }
  }
}

void Magnitudes::update(const fuseo1_operand* operands, int64_t offset, int64_t count, int most_threads) {
  const Chunk chunk = {operands, targets, offset};
  if (threads_ == 0) begin_pass(most_threads);
  fed += count;
  const int64_t here = (offset + count + kSegment - 1) / kSegment - offset / kSegment;
  const int64_t busy = std::min<int64_t>({threads_, most_threads, here});
  while (static_cast<int64_t>(shares_.size()) < busy) add_share();
  for_each_segment(offset, count, static_cast<int>(busy), [&](int thread, int64_t begin, int64_t end) {
    if (phase == FUSEO1_SURVEY_SCAN || phase == FUSEO1_SURVEY_ENERGY) {
      scan(chunk, *shares_[thread], begin, end);
    } else {
      score(chunk, *shares_[thread], begin, end);
    }
  });
}

int64_t Magnitudes::candidates(size_t r) const {
  return sum(r, [](const PartShare& mine) { return mine.ranked.candidate_count; });
}

Cut Magnitudes::select(size_t r, int64_t wanted, Bracket within) {
  std::vector<Marks*> lists;
  for (const auto& share : shares_) lists.push_back(&share->parts[r].marks);
  return select_marks(lists, wanted, within, numel);
}

const Pages<int64_t>& Magnitudes::merged_histogram(size_t r) {
  Pages<int64_t>& merged = shares_[0]->parts[r].histogram;
  for (size_t i = 1; i < shares_.size(); ++i) {
    for (size_t b = 0; b < merged.size(); ++b) merged[b] += shares_[i]->parts[r].histogram[b];
  }
  return merged;
}

// Zeros are never selected.
bool Magnitudes::settle_if_all(Part* part, int64_t nonzero) {
  if (part->k < nonzero + has_factors()) return false;
  part->ranking.settle(0, nonzero, -1);
  return true;
}

// Whether the scan has found the cut.
bool Magnitudes::scan_found(size_t r) {
  Part& part = parts_[r];
  if (part.overflowed) return false;
  const Bracket bracket = part.ranking.bracket;
  const int64_t above = sum(r, [](const PartShare& mine) { return mine.ranked.above; }), inside = candidates(r);
  const bool all_counted = bracket.low <= 1;  // except zeros
  if (all_counted && settle_if_all(&part, above + inside)) return true;
  const int64_t wanted = part.k - above;
  // If all counted are wanted, k may be all that are not 0, and whether it is must be known.
  if (wanted < 1 || wanted > inside || (wanted == inside && !all_counted)) return false;
  const Cut cut = select(r, wanted, bracket);
  part.ranking.settle(cut.threshold, part.k, cut.splits_ties ? cut.last_tie : numel - 1);
  return true;
}

bool Magnitudes::high_found(size_t r) {
  Part& part = parts_[r];
  if (settle_if_all(&part, numel - sum(r, [](const PartShare& mine) { return mine.zeros; }))) return true;
  part.ranking.take_high(merged_histogram(r), part.k);
  return false;
}

void Magnitudes::find_last_tie(size_t r) {
  Ranking& ranking = parts_[r].ranking;
  if (candidates(r) < ranking.wanted) throw DataChanged();
  ranking.tie_limit = select(r, ranking.wanted, {ranking.threshold, ranking.threshold}).last_tie;
}

void Magnitudes::end_pass() {
  passes += phase != FUSEO1_SURVEY_SAMPLE;
  if (phase == FUSEO1_SURVEY_SCAN) {
    for (const auto& share : shares_) {
      for (int i = 0; i < targets + 2; ++i) nonfinite_[i] += share->nonfinite[i];
    }
  }
  for (size_t r = 0; r < parts_.size(); ++r) {
    Part& part = parts_[r];
    if (!part.sought) continue;
    switch (phase) {
      case FUSEO1_SURVEY_SAMPLE:
        break;
      case FUSEO1_SURVEY_SCAN:
        part.sought = !scan_found(r);
        break;
      case FUSEO1_SURVEY_HIGH:
        part.sought = !high_found(r);
        break;
      case FUSEO1_SURVEY_LOW:
        part.sought = part.ranking.take_low(merged_histogram(r), numel);
        break;
      case FUSEO1_SURVEY_TIES:
        part.ranking.take_ties(part.ties);
        break;
      default:
        find_last_tie(r);
        part.sought = false;
    }
  }
  enter(sought() ? phase + 1 : FUSEO1_SURVEY_DONE);
}

}  // namespace

std::unique_ptr<fuseo1_survey> magnitude_survey(int32_t targets, int64_t numel, const int64_t* ranks,
                                                int32_t per_target, const fuseo1_row_factors* rows, int64_t max_bytes) {
  return std::make_unique<Magnitudes>(targets, numel, ranks, per_target, rows, max_bytes);
}

}  // namespace fuseo1
