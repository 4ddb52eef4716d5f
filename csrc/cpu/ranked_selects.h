// SPDX-License-Identifier: Apache-2.0
// Selections that include RANKED ones: these are decided unit by unit, of whole rows and whole blocks, and passed on as
// BITS.
#ifndef FUSEO1_CPU_RANKED_SELECTS_H_
#define FUSEO1_CPU_RANKED_SELECTS_H_

#include <stdint.h>
#include <string.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <vector>

#include "dispatch.h"
#include "parallel.h"

namespace fuseo1 {

// The row of the RANKED selections; 0: there are none.
inline int64_t ranked_row(const fuseo1_select* selects, int32_t targets) {
  for (int i = 0; selects && i < targets; ++i) {
    if (selects[i].kind == FUSEO1_SELECT_RANKED) return selects[i].row;
  }
  return 0;
}

// Chunks begin at multiples of this.
inline int64_t step_of(int64_t row) { return row > 1 && row <= INT32_MAX ? std::lcm(row, int64_t{kBlock}) : kBlock; }

inline bool valid_ranked(const fuseo1_select& select, int64_t row) {
  return select.row == row && row >= 1 && row <= INT32_MAX && select.low >= 0 && select.span >= 0 &&
         select.low + select.span < 1;
}

// The memory of one thread. Throws std::bad_alloc.
class RankedRoom {
 public:
  RankedRoom(int64_t row, int64_t unit, int32_t targets) : bit_words_(unit / 64) {
    const int64_t batch = std::max(row, kRankBatch) + 3 * kBlock, of_row = row + kBlock;
    const int64_t bins = (int64_t{kRankOctaves} << rank_bins_log2(row)) + kBlock;
    numbers_.reset(new uint32_t[static_cast<size_t>(3 * batch + 2 * of_row)]);
    const int64_t size = row <= kNarrowRow ? sizeof(uint16_t) : sizeof(uint32_t);
    counts_.reset(new char[static_cast<size_t>((2 * of_row + bins) * size + bins)]);
    selected_.reset(new uint8_t[static_cast<size_t>(batch)]());
    bits_.reset(new uint64_t[static_cast<size_t>(bit_words_ * targets)]);
    uint32_t* at = numbers_.get();
    const auto next = [&at](int64_t count) { return at += count, at - count; };
    room_.magnitudes = next(batch);
    room_.open = next(batch);
    room_.words = next(batch);
    room_.order = next(of_row);
    room_.spare = next(of_row);
    char* const counts = counts_.get();
    room_.bins = counts;
    room_.places = counts + of_row * size;
    room_.above = counts + 2 * of_row * size;
    room_.selected = selected_.get();
    room_.mixed = reinterpret_cast<uint8_t*>(counts + (2 * of_row + bins) * size);
  }

  const RankRoom& get() const { return room_; }
  uint64_t* bits(int target) { return bits_.get() + target * bit_words_; }

 private:
  RankRoom room_;
  int64_t bit_words_;
  std::unique_ptr<uint32_t[]> numbers_;
  std::unique_ptr<char[]> counts_;
  std::unique_ptr<uint8_t[]> selected_;
  std::unique_ptr<uint64_t[]> bits_;
};

// The selections of a call or a survey. The floating-point state may be the caller's when one is made. Throws
// std::bad_alloc.
class RankedSelects {
 public:
  RankedSelects(const fuseo1_select* selects, int32_t targets) : row_(ranked_row(selects, targets)) {
    if (!row_) return;
    const int64_t step = step_of(row_);
    unit_ = step * std::max<int64_t>(kUnit / step, 1);
    selects_.assign(selects, selects + targets);
    limits_of_.assign(static_cast<size_t>(targets), 0);
    for (int i = 0; i < targets; ++i) {
      if (selects[i].kind == FUSEO1_SELECT_RANKED) limits_of_[i] = limits_like(i);
    }
  }

  bool any() const { return row_ != 0; }
  int64_t row() const { return row_; }
  int64_t segment() const { return any() ? unit_ * std::max<int64_t>(kSegment / unit_, 1) : kSegment; }

  // Adds rooms until there are `count`, if any are needed.
  void make_rooms(int64_t count) {
    while (any() && static_cast<int64_t>(rooms_.size()) < count) {
      rooms_.push_back(std::make_unique<RankedRoom>(row_, unit_, static_cast<int32_t>(selects_.size())));
    }
  }

  // Calls work(part, selects, at, count) on each unit of the chunk's elements [begin, end), in the room of `thread`.
  // `part` begins at the chunk's element `at`. Unless nullptr, kept[i] receives the bits of target i for the whole
  // tensor. Must not throw.
  template <class Work>
  void for_each_unit(const Chunk& chunk, int64_t begin, int64_t end, int thread, uint64_t* const* kept,
                     const Work& work) const {
    RankedRoom& room = *rooms_[thread];
    fuseo1_operand operands[FUSEO1_MAX_TARGETS + 1];
    fuseo1_select selects[FUSEO1_MAX_TARGETS];
    std::copy(selects_.begin(), selects_.end(), selects);
    for (int64_t at = begin; at < end; at += unit_) {
      const int64_t count = std::min(unit_, end - at);
      for (int i = 0; i <= chunk.targets; ++i) {
        const int32_t dtype = chunk.operands[i].dtype;
        operands[i] = {static_cast<const char*>(chunk.operands[i].data) + at * element_size(dtype), dtype};
      }
      for (int i = 0; i < chunk.targets; ++i) {
        if (selects_[i].kind == FUSEO1_SELECT_BITS) selects[i].bits = selects_[i].bits + at / 64;
        if (selects_[i].kind != FUSEO1_SELECT_RANKED) continue;
        const fuseo1_operand pair[] = {operands[0], operands[i + 1]};
        uint64_t* const bits = kept && kept[i] ? kept[i] + (chunk.offset + at) / 64 : room.bits(i);
        memset(bits, 0, static_cast<size_t>(whole_blocks(count) / 8));
        const RankRule rule = {selects_[i].key, row_, limits_[limits_of_[i]].data()};
        kernels().rank({pair, 1, chunk.offset + at}, count, rule, room.get(), bits);
        selects[i].kind = FUSEO1_SELECT_BITS;
        selects[i].bits = bits;
      }
      work(Chunk{operands, chunk.targets, chunk.offset + at}, selects, at, count);
    }
  }

 private:
  static constexpr int64_t kUnit = 8192;  // elements; those of all inputs stay in the L1 or L2 cache

  // The limits of target i: new, or those of an earlier target with the same low and span.
  size_t limits_like(int i) {
    const fuseo1_select& mine = selects_[i];
    for (int k = 0; k < i; ++k) {
      const fuseo1_select& other = selects_[k];
      if (other.kind == FUSEO1_SELECT_RANKED && other.low == mine.low && other.span == mine.span) return limits_of_[k];
    }
    const DefaultFloatingPoint guard;
    std::vector<uint32_t> limits(static_cast<size_t>(row_));
    for (int64_t rank = 0; rank < row_; ++rank) {
      const double p = row_ == 1 ? mine.low + mine.span / 2
                                 : mine.low + static_cast<double>(rank) / static_cast<double>(row_ - 1) * mine.span;
      limits[row_ - 1 - rank] = static_cast<uint32_t>(0x1p32 * p);
    }
    limits_.push_back(std::move(limits));
    return limits_.size() - 1;
  }

  int64_t row_, unit_ = 0;
  std::vector<fuseo1_select> selects_;
  std::vector<std::vector<uint32_t>> limits_;  // by the number of larger elements in the row
  std::vector<size_t> limits_of_;              // by target
  std::vector<std::unique_ptr<RankedRoom>> rooms_;
};

}  // namespace fuseo1
#endif  // FUSEO1_CPU_RANKED_SELECTS_H_
