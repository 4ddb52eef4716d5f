// SPDX-License-Identifier: Apache-2.0
#include "marks.h"

#include <mutex>
#include <utility>

#include "dispatch.h"
#include "parallel.h"

namespace fuseo1 {
namespace {

constexpr int64_t kScoreBins = 4096, kBlockBins = 1024;  // histograms that stay in the L1 cache while they are filled
constexpr size_t kGuesses = 3;

using Lists = std::vector<Marks*>;

// A histogram of keys, counted by several at once: its bins are stretches of 2^shift keys from `low` on.
class Histogram {
 public:
  Histogram(size_t parts, int64_t bins, int64_t low, int64_t high) : bins_(bins), from_(low), counts_(parts * bins) {
    while ((high - low) >> shift_ >= bins) ++shift_;
  }

  void add(size_t part, int64_t key, int64_t count) { counts_[part * bins_ + ((key - from_) >> shift_)] += count; }

  // Narrows keys to the bin at which `wanted` are reached, counted from the lowest up; takes those before it off
  // `wanted`.
  void reach(int64_t* wanted, int64_t* low, int64_t* high) {
    for (size_t b = bins_; b < counts_.size(); ++b) counts_[b % bins_] += std::exchange(counts_[b], 0);
    int64_t bin = 0;
    for (; counts_[bin] < *wanted; ++bin) *wanted -= counts_[bin];
    *low = from_ + (bin << shift_);
    *high = std::min(*high, *low + (int64_t{1} << shift_) - 1);
  }

 private:
  size_t bins_;
  int64_t from_;
  int shift_ = 0;
  std::vector<int64_t> counts_;
};

// How many of a block's `n` candidates have the score, which is not 0; `single`: all have.
int64_t count_equal(const uint32_t* scores, int64_t n, bool single, uint32_t to) {
  int64_t equal = n, above;
  if (!single) kernels().magnitudes.compare(scores, n, &to, 1, &equal, &above);
  return equal;
}

// Candidates with one score, by block, and how many have a higher one.
struct Ties {
  uint32_t score;
  int64_t above, equal;
  Histogram by_block;
};

// Of each of up to kGuesses scores, in one walk.
std::vector<Ties> count_ties(const Lists& lists, const std::vector<uint32_t>& scores, bool single, int64_t blocks) {
  std::vector<Ties> found;
  for (const uint32_t score : scores) found.push_back({score, 0, 0, {lists.size(), kBlockBins, 0, blocks - 1}});
  const auto compare = kernels().magnitudes.compare;
  const int guesses = static_cast<int>(scores.size());
  std::mutex adding;
  in_parallel(static_cast<int64_t>(lists.size()), [&](int64_t i) {
    int64_t above[kGuesses] = {}, equal[kGuesses] = {};
    lists[i]->for_each(single, [&](int64_t block, int64_t n, const uint32_t*, const uint32_t* of_block) {
      int64_t equal_here[kGuesses] = {n}, above_here[kGuesses] = {};  // if it is one score
      if (!single) compare(of_block, n, scores.data(), guesses, equal_here, above_here);
      for (int g = 0; g < guesses; ++g) {
        above[g] += above_here[g], equal[g] += equal_here[g];
        found[g].by_block.add(i, block / kBlock, equal_here[g]);
      }
    });
    const std::lock_guard<std::mutex> lock(adding);
    for (int g = 0; g < guesses; ++g) found[g].above += above[g], found[g].equal += equal[g];
  });
  return found;
}

// The last of the `wanted` highest scores.
uint32_t find_threshold(const Lists& lists, int64_t wanted, Bracket range) {
  int64_t low = -static_cast<int64_t>(range.high), high = -static_cast<int64_t>(range.low);
  while (low < high) {
    Histogram by_score(lists.size(), kScoreBins, low, high);
    in_parallel(static_cast<int64_t>(lists.size()), [&](int64_t i) {
      lists[i]->for_each(false, [&](int64_t, int64_t n, const uint32_t*, const uint32_t* scores) {
        for (int64_t j = 0; j < n; ++j) {
          const int64_t key = -static_cast<int64_t>(scores[j]);
          if (low <= key && key <= high) by_score.add(i, key, 1);
        }
      });
    });
    by_score.reach(&wanted, &low, &high);
  }
  return static_cast<uint32_t>(-low);
}

// The index of the `nth` (from 1) of a block's candidates that have the score.
int64_t nth_tie(int64_t block, const uint32_t* marks, const uint32_t* scores, bool single, uint32_t score,
                int64_t nth) {
  for (int64_t j = 0;; ++j) {
    if (!(marks[j / 32] >> (j % 32) & 1)) continue;
    if ((single || *scores++ == score) && --nth == 0) return block + j;
  }
}

}  // namespace

int64_t mark_selection_bytes(int64_t lists) {
  return lists * (kScoreBins + (kGuesses + 1) * kBlockBins) * static_cast<int64_t>(sizeof(int64_t));
}

Cut select_marks(const Lists& lists, int64_t wanted, Bracket range, uint32_t likeliest, int64_t numel) {
  const bool single = range.low == range.high;
  const int64_t blocks = (numel + kBlock - 1) / kBlock;
  // Likely scores are tried first, among masses of equals also those where the bracket ends: counting one score is
  // fast, where a histogram would have to wait for every increment of one bin.
  std::vector<uint32_t> guesses = {range.low};
  if (!single) guesses = {range.high, std::clamp(likeliest, range.low, range.high), range.low};
  std::vector<Ties> counted = count_ties(lists, guesses, single, blocks);
  const auto ends_there = [=](const Ties& ties) { return ties.above < wanted && wanted <= ties.above + ties.equal; };
  auto found = std::find_if(counted.begin(), counted.end(), ends_there);
  if (found == counted.end()) {
    counted = count_ties(lists, {find_threshold(lists, wanted, range)}, single, blocks);
    found = counted.begin();
  }
  Ties& ties = *found;

  wanted -= ties.above;
  Cut cut = {ties.score, -1, wanted < ties.equal};
  int64_t first = 0, last = blocks - 1;
  ties.by_block.reach(&wanted, &first, &last);
  while (first < last) {
    Histogram by_block(1, kBlockBins, first, last);
    for (const Marks* list : lists) {
      list->for_each_between(first * kBlock, last * kBlock, single,
                             [&](int64_t block, int64_t n, const uint32_t*, const uint32_t* scores) {
                               by_block.add(0, block / kBlock, count_equal(scores, n, single, ties.score));
                             });
    }
    by_block.reach(&wanted, &first, &last);
  }
  for (const Marks* list : lists) {
    list->for_each_between(first * kBlock, first * kBlock, single,
                           [&](int64_t block, int64_t, const uint32_t* marks, const uint32_t* scores) {
                             cut.last_tie = nth_tie(block, marks, scores, single, ties.score, wanted);
                           });
  }
  return cut;
}

}  // namespace fuseo1
