// SPDX-License-Identifier: Apache-2.0
// The survey of divergences: one read; rows that cross chunks are kept until they are whole (include/fuseo1/survey.h).
#include <string.h>

#include <array>
#include <map>
#include <memory>

#include "base.h"
#include "dispatch.h"
#include "pages.h"
#include "parallel.h"

namespace fuseo1 {
namespace {

// Most bytes of the rows that all threads are working on, unless a single row takes more.
constexpr int64_t kRowBytes = 4 << 20;

// The part of a row that has been fed.
struct PartialRow {
  int64_t elements = 0;
  Pages<char> data[2];  // of base and target
  int32_t dtypes[2];
};

class Divergences final : public fuseo1_survey {
 public:
  Divergences(int64_t numel, int64_t row)
      : fuseo1_survey(1, numel), row_(row), factors_(static_cast<size_t>(numel / row)) {
    phase = numel ? FUSEO1_SURVEY_ENERGY : FUSEO1_SURVEY_DONE;
  }

  void update(const fuseo1_operand* operands, int64_t offset, int64_t count, int threads) override {
    fed += count;
    const int64_t end = offset + count;
    const int64_t head = std::min((offset + row_ - 1) / row_ * row_, end), tail = std::max(end / row_ * row_, head);
    if (head > offset) keep(operands, offset, offset, head);
    find({operands, 1, offset}, head, tail, threads);
    if (end > tail) keep(operands, offset, tail, end);
  }

  void end_pass() override {
    ++passes;
    phase = FUSEO1_SURVEY_DONE;
  }

  void tell(fuseo1_survey_result* out) const override { std::copy(nonfinite_, nonfinite_ + 3, out->nonfinite); }
  bool tell_divergences(float* factors) const override {
    std::copy(factors_.begin(), factors_.end(), factors);
    return true;
  }

 private:
  void keep(const fuseo1_operand* operands, int64_t offset, int64_t begin, int64_t end);
  void find(const Chunk& chunk, int64_t begin, int64_t end, int threads);

  const int64_t row_;
  Pages<float> factors_;
  std::map<int64_t, PartialRow> partial_;  // by row number
  int64_t nonfinite_[3] = {};
};

// Copies elements begin .. end - 1, which are in one row, and finds the row's divergence if it is now whole.
void Divergences::keep(const fuseo1_operand* operands, int64_t offset, int64_t begin, int64_t end) {
  const int64_t number = begin / row_, start = number * row_;
  PartialRow& partial = partial_[number];
  for (int side = 0; side < 2; ++side) {
    const int64_t size = element_size(operands[side].dtype);
    if (partial.data[side].empty()) {
      partial.data[side].resize(static_cast<size_t>(row_ * size));
      partial.dtypes[side] = operands[side].dtype;
    }
    if (partial.dtypes[side] != operands[side].dtype) throw DataChanged();
    const char* from = static_cast<const char*>(operands[side].data) + (begin - offset) * size;
    memcpy(partial.data[side].data() + (begin - start) * size, from, static_cast<size_t>((end - begin) * size));
  }
  partial.elements += end - begin;
  if (partial.elements < row_) return;
  const fuseo1_operand whole[2] = {{partial.data[0].data(), partial.dtypes[0]},
                                   {partial.data[1].data(), partial.dtypes[1]}};
  find({whole, 1, start}, start, start + row_, 1);
  partial_.erase(number);
}

// Finds the divergences of the whole rows in elements begin .. end - 1 of the tensor, all of them in `chunk`.
void Divergences::find(const Chunk& chunk, int64_t begin, int64_t end, int threads) {
  const int64_t first = begin / row_, rows = (end - begin) / row_;
  if (rows == 0) return;
  const int64_t room = 2 * whole_blocks(row_), at_once = std::max<int64_t>(kSegment / row_, 1);
  const int64_t busy = std::min<int64_t>(
      {threads, (rows + at_once - 1) / at_once, std::max<int64_t>(kRowBytes / (room * int64_t{sizeof(double)}), 1)});
  Pages<double> rooms(static_cast<size_t>(busy * room));
  std::vector<std::array<int64_t, 3>> nonfinite(static_cast<size_t>(busy));
  std::atomic<int64_t> next{0};
  in_parallel(busy, [&](int64_t thread) {
    for (int64_t r; (r = next.fetch_add(at_once, std::memory_order_relaxed)) < rows;) {
      for (int64_t i = first + r; i < first + std::min(r + at_once, rows); ++i) {
        const int64_t at = i * row_ - chunk.offset;
        factors_[static_cast<size_t>(i)] =
            kernels().divergence(chunk, at, at + row_, rooms.data() + thread * room, nonfinite[thread].data());
      }
    }
  });
  for (const auto& counts : nonfinite) {
    for (int i = 0; i < 3; ++i) nonfinite_[i] += counts[i];
  }
}

}  // namespace

std::unique_ptr<fuseo1_survey> divergence_survey(int64_t numel, int64_t row) {
  return std::make_unique<Divergences>(numel, row);
}

}  // namespace fuseo1
