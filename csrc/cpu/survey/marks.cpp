// SPDX-License-Identifier: Apache-2.0
#include "marks.h"

#include <utility>

#include "dispatch.h"
#include "parallel.h"

namespace fuseo1 {
namespace {

constexpr int64_t kScoreBins = 4096, kBlockBins = 1024;  // histograms that stay in the L1 cache while they are filled

using Lists = std::vector<Marks*>;

// A histogram of keys, counted in several parts at once; a bin is a stretch of 2^shift keys from `low` on.
class Histogram {
 public:
  Histogram(size_t parts, int64_t bins, int64_t low, int64_t high) : bins_(bins), from_(low), counts_(parts * bins) {
    while ((high - low) >> shift_ >= bins) ++shift_;
  }

  void add(size_t part, int64_t key, int64_t count) { counts_[part * bins_ + ((key - from_) >> shift_)] += count; }

  // Narrows [low, high] to the bin at which `wanted` are reached, counted from the lowest up; subtracts those before it
  // from `wanted`.
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

// The counts of all slabs.
GuessCounts counts_of(const Lists& lists) {
  GuessCounts all = {};
  for (const Marks* list : lists) {
    list->for_each_slab([&](const Slab& slab) {
      for (int g = 0; g < kGuesses; ++g) all.equal[g] += slab.scores.equal[g], all.above[g] += slab.scores.above[g];
    });
  }
  return all;
}

// The guess that is the `wanted`-th highest score; kGuesses: none is.
int right_guess(const GuessCounts& counts, int64_t wanted) {
  int g = 0;
  while (g < kGuesses && !(counts.above[g] < wanted && wanted <= counts.above[g] + counts.equal[g])) ++g;
  return g;
}

// The `wanted`-th highest score.
uint32_t find_threshold(const Lists& lists, int64_t wanted, Bracket range) {
  int64_t low = -static_cast<int64_t>(range.high), high = -static_cast<int64_t>(range.low);
  while (low < high) {
    Histogram by_score(lists.size(), kScoreBins, low, high);
    in_parallel(static_cast<int64_t>(lists.size()), [&](int64_t i) {
      lists[i]->for_each_slab([&](const Slab& slab) {
        for (const uint32_t* score = slab.begin(); score != slab.end; ++score) {
          const int64_t key = -static_cast<int64_t>(*score);
          if (low <= key && key <= high) by_score.add(i, key, 1);
        }
      });
    });
    by_score.reach(&wanted, &low, &high);
  }
  return static_cast<uint32_t>(-low);
}

int64_t ties_in(const OfBlock& b, uint32_t score) {
  return b.single ? b.count : std::count(b.scores, b.scores + b.count, score);
}

// The flat index of the block's `nth` (from 1) candidate with this score.
int64_t tie_in(const OfBlock& b, uint32_t score, int64_t nth) {
  const uint32_t* s = b.scores;
  for (int64_t j = 0;; ++j) {
    if (!(b.marks[j / 32] >> (j % 32) & 1)) continue;
    if ((b.single || *s++ == score) && --nth == 0) return b.block * kBlock + j;
  }
}

// The index of the `nth` (from 1) of the lists' candidates with this score, which is their guess number `guess`.
int64_t find_tie(const Lists& lists, int guess, uint32_t score, int64_t nth, int64_t numel) {
  // Bounds of the block, whatever the order of chunks: counting a slab's ties at its first block reaches the nth too
  // early, at its last block too late. The block lies in between.
  int64_t first = 0, last = (numel - 1) / kBlock;
  Histogram by_first(1, kBlockBins, first, last), by_last(1, kBlockBins, first, last);
  for (const Marks* list : lists) {
    list->for_each_slab([&](const Slab& slab) {
      by_first.add(0, slab.lowest, slab.scores.equal[guess]);
      by_last.add(0, slab.highest, slab.scores.equal[guess]);
    });
  }
  int64_t rank = nth, beyond = last, before;
  by_first.reach(&rank, &first, &beyond);
  rank = nth;
  by_last.reach(&rank, &before, &last);

  for (;;) {
    rank = nth;
    Histogram by_block(1, kBlockBins, first, last);
    OfBlock there = {};  // the block, once it is a single one
    for (const Marks* list : lists) {
      list->for_each_slab([&](const Slab& slab) {
        if (slab.highest < first) rank -= slab.scores.equal[guess];
        if (slab.highest < first || slab.lowest > last) return;
        list->for_each_in(slab, [&](const OfBlock& here) {
          if (here.block < first) {
            rank -= ties_in(here, score);
          } else if (here.block <= last) {
            by_block.add(0, here.block, ties_in(here, score));
            there = here;
          }
        });
      });
    }
    if (first == last) return tie_in(there, score, rank);
    by_block.reach(&rank, &first, &last);
  }
}

// Adds the energies of a block's ties up to `last`, an index within the block.
void add_ties(const OfBlock& b, int targets, uint32_t score, int64_t last, Totals* totals) {
  const auto* exponent = reinterpret_cast<const uint8_t*>(b.payload);
  const uint32_t* t = b.payload + exponent_words(targets);
  for (int64_t j = 0, c = 0; j <= last; ++j) {
    if (!(b.marks[j / 32] >> (j % 32) & 1)) continue;
    for (int i = 0; i < targets && (b.single || b.scores[c] == score); ++i) {
      totals->bins[i][exponent[i]] += t[i * b.count + c];
    }
    ++c;
  }
}

}  // namespace

void add_selected_energies(const Lists& lists, const std::vector<Totals*>& totals, int targets, Cut cut) {
  const int64_t cut_block = cut.last_tie / kBlock;
  const auto add_selected = kernels().add_selected;
  in_parallel(static_cast<int64_t>(lists.size()), [&](int64_t i) {
    lists[i]->for_each_slab([&](const Slab& slab) {
      lists[i]->for_each_in(slab, [&](const OfBlock& b) {
        const uint32_t least = b.block < cut_block ? cut.threshold : cut.threshold + 1;
        if (!b.single) {
          add_selected(b.payload, b.count, targets, b.scores, least, totals[i]);
        } else if (b.block < cut_block) {  // all of them: no t is below 0
          add_selected(b.payload, b.count, targets, b.payload + exponent_words(targets), 0, totals[i]);
        }
        if (b.block == cut_block) add_ties(b, targets, cut.threshold, cut.last_tie % kBlock, totals[i]);
      });
    });
  });
}

void Marks::expect(Bracket bracket, uint32_t likeliest) {
  single_ = bracket.low == bracket.high;
  guesses_[0] = bracket.high;
  guesses_[1] = std::clamp(likeliest, bracket.low, std::max(bracket.low, bracket.high));
  guesses_[2] = bracket.low;
}

void Marks::guess(uint32_t score) {
  std::fill(guesses_, guesses_ + kGuesses, score);
  for (Slab* slab = first_; slab; slab = slab->next) compare(slab);
}

void Marks::compare(Slab* slab) const {
  slab->lowest = INT64_MAX, slab->highest = -1;
  int64_t all = 0;
  for_each_in(*slab, [&](const OfBlock& b) {
    slab->lowest = std::min(slab->lowest, b.block), slab->highest = std::max(slab->highest, b.block);
    all += b.count;
  });
  if (single_) {
    slab->scores = {};
    slab->scores.equal[0] = all;
    return;
  }
  // kMarkRoom leaves room for the zeros; no guess is 0.
  memset(slab->begin() + all, 0, kMarkPad * sizeof(uint32_t));
  slab->scores = kernels().magnitudes.compare(slab->begin(), (all + kMarkPad - 1) / kMarkPad * kMarkPad, guesses_);
}

int64_t mark_selection_bytes(int64_t lists) {
  return (lists * kScoreBins + 3 * kBlockBins) * static_cast<int64_t>(sizeof(int64_t));
}

Cut select_marks(const Lists& lists, int64_t wanted, Bracket range, int64_t numel) {
  for (Marks* list : lists) list->finish();
  GuessCounts counts = counts_of(lists);
  int guess = right_guess(counts, wanted);
  if (guess == kGuesses) {
    const uint32_t threshold = find_threshold(lists, wanted, range);
    in_parallel(static_cast<int64_t>(lists.size()), [&](int64_t i) { lists[i]->guess(threshold); });
    counts = counts_of(lists);
    guess = 0;
  }
  const uint32_t score = lists[0]->guessed(guess);
  const int64_t rank = wanted - counts.above[guess];
  return {score, find_tie(lists, guess, score, rank, numel), rank < counts.equal[guess]};
}

}  // namespace fuseo1
