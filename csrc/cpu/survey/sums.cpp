// SPDX-License-Identifier: Apache-2.0
// The surveys of norms, overlaps and Gram matrices: one pass that adds integers (include/fuseo1/survey.h).
#include <math.h>

#include <memory>

#include "base.h"
#include "pages.h"
#include "ranked_selects.h"

namespace fuseo1 {
namespace {

// One thread's share, or the sum of all shares.
struct Share {
  explicit Share(int64_t sums) : sums(static_cast<size_t>(sums) * kExponents) {}
  SumBins* bins() { return reinterpret_cast<SumBins*>(sums.data()); }

  Pages<int64_t> sums;  // kExponents per sum
  int64_t nonfinite[FUSEO1_MAX_TARGETS + 2] = {};
};

class Sums : public fuseo1_survey {
 public:
  Sums(int32_t n, int64_t numel, int64_t count) : fuseo1_survey(n, numel), count_(count), all_(count) {
    phase = numel ? FUSEO1_SURVEY_ENERGY : FUSEO1_SURVEY_DONE;
  }

  void update(const fuseo1_operand* operands, int64_t offset, int64_t count, int threads) override {
    const Chunk chunk = {operands, targets, offset};
    fed += count;
    const int64_t used = std::min<int64_t>(threads, segments_of(offset, count, segment()));
    while (static_cast<int64_t>(shares_.size()) < used) shares_.push_back(std::make_unique<Share>(count_));
    make_rooms(used);
    const auto add_segment = [&](int thread, int64_t begin, int64_t end) {
      Share& share = *shares_[thread];
      add(chunk, begin, end, thread, share.bins(), share.nonfinite);
    };
    for_each_segment(offset, count, threads, add_segment, segment());
  }

  void end_pass() override {
    for (const auto& share : shares_) {
      for (size_t b = 0; b < all_.sums.size(); ++b) all_.sums[b] += share->sums[b];
      for (int i = 0; i < targets + 2; ++i) all_.nonfinite[i] += share->nonfinite[i];
    }
    shares_.clear();
    ++passes;
    phase = FUSEO1_SURVEY_DONE;
  }

  void tell(fuseo1_survey_result* out) const override {
    std::copy(all_.nonfinite, all_.nonfinite + targets + 2, out->nonfinite);
  }

 protected:
  virtual void add(const Chunk& chunk, int64_t begin, int64_t end, int thread, SumBins* sums,
                   int64_t* nonfinite) const = 0;
  // The elements of a segment, and memory for so many threads.
  virtual int64_t segment() const { return kSegment; }
  virtual void make_rooms(int64_t) {}

  double sum(int64_t s) const {
    double out = 0.0;
    for (int e = 0; e < kExponents; ++e) out += ldexp(static_cast<double>(all_.sums[s * kExponents + e]), e - 149);
    return out;
  }

  const int64_t count_;

 private:
  Share all_;
  std::vector<std::unique_ptr<Share>> shares_;  // by thread
};

// Sums over the selected elements: norms, or overlaps, for which no masks are kept.
class Selected final : public Sums {
 public:
  Selected(int32_t n, int64_t numel, const fuseo1_select* selects, bool overlaps)
      : Sums(n, numel, 2 * n), overlaps_(overlaps), ranked_(selects, n), kept_(static_cast<size_t>(n)) {
    if (selects) selects_.assign(selects, selects + n);
  }

  int64_t row() const override { return ranked_.any() ? ranked_.row() : 1; }

  void lend(Loan memory) override {
    if (overlaps_) return;
    const int64_t words = whole_blocks(numel) / 64, bytes = words * static_cast<int64_t>(sizeof(uint64_t));
    auto* next = reinterpret_cast<uint64_t*>(memory.start);
    for (size_t i = 0; i < selects_.size(); ++i) {
      const int kind = selects_[i].kind;
      if ((kind != FUSEO1_SELECT_DRAW && kind != FUSEO1_SELECT_RANKED) || memory.bytes < bytes) continue;
      kept_[i] = next;
      next += words, memory.bytes -= bytes;
    }
  }
  const uint64_t* kept(int32_t target) const override { return kept_[target]; }

  bool tell_sums(double* sums) const override {
    for (int64_t s = 0; s < count_; ++s) sums[s] = sum(s);
    return true;
  }

 private:
  void add(const Chunk& chunk, int64_t begin, int64_t end, int thread, SumBins* sums,
           int64_t* nonfinite) const override {
    const auto kernel = overlaps_ ? kernels().sums.overlaps : kernels().sums.norms;
    if (!ranked_.any()) {
      kernel(chunk, begin, end, selects_.empty() ? nullptr : selects_.data(), kept_.data(), sums, nonfinite);
      return;
    }
    ranked_.for_each_unit(chunk, begin, end, thread, kept_.data(),
                          [&](const Chunk& part, const fuseo1_select* selects, int64_t, int64_t count) {
                            kernel(part, 0, count, selects, kept_.data(), sums, nonfinite);
                          });
  }
  int64_t segment() const override { return ranked_.segment(); }
  void make_rooms(int64_t count) override { ranked_.make_rooms(count); }

  const bool overlaps_;
  std::vector<fuseo1_select> selects_;
  RankedSelects ranked_;
  std::vector<uint64_t*> kept_;  // a bit per element, by target; nullptr: nothing is kept
};

class Gram final : public Sums {
 public:
  Gram(int32_t n, int64_t numel, bool of_inputs)
      : Sums(n, numel, int64_t{n + of_inputs} * (n + of_inputs + 1) / 2), of_inputs_(of_inputs) {}

  bool tell_sums(double* sums) const override {
    const int64_t n = targets + of_inputs_;
    for (int64_t i = 0, s = 0; i < n; ++i) {
      for (int64_t k = 0; k <= i; ++k, ++s) sums[i * n + k] = sums[k * n + i] = sum(s);
    }
    return true;
  }

 private:
  void add(const Chunk& chunk, int64_t begin, int64_t end, int, SumBins* sums, int64_t* nonfinite) const override {
    kernels().sums.gram(chunk, begin, end, of_inputs_, sums, nonfinite);
  }

  const bool of_inputs_;
};

}  // namespace

std::unique_ptr<fuseo1_survey> norm_survey(int32_t targets, int64_t numel, const fuseo1_select* selects) {
  return std::make_unique<Selected>(targets, numel, selects, false);
}

std::unique_ptr<fuseo1_survey> overlap_survey(int32_t targets, int64_t numel, const fuseo1_select* selects) {
  return std::make_unique<Selected>(targets, numel, selects, true);
}

std::unique_ptr<fuseo1_survey> gram_survey(int32_t targets, int64_t numel, bool of_inputs) {
  return std::make_unique<Gram>(targets, numel, of_inputs);
}

}  // namespace fuseo1
