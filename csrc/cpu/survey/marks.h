// SPDX-License-Identifier: Apache-2.0
// Candidates, kept as marks on their blocks: a light fine-tune in bf16 has masses of ties, which a bit and a score
// each hold in little memory, and which are found by counting whole slabs.
#ifndef FUSEO1_CPU_SURVEY_MARKS_H_
#define FUSEO1_CPU_SURVEY_MARKS_H_

#include <stdint.h>
#include <string.h>

#include <algorithm>
#include <vector>

#include "slabs.h"

namespace fuseo1 {

constexpr int64_t kMarkSlabBytes = 32 << 10;  // small: every ranking of every thread fills its own
static_assert(kMarkSlabBytes >= 8 * 4 * kMarkRoom);
// With payload. At least three blocks' candidates of any number of targets: the room lost at a slab's end, less than a
// block's, stays small.
constexpr int64_t kSlabBytes = 256 << 10;
static_assert(kSlabBytes >= 3 * 4 * mark_room(FUSEO1_MAX_TARGETS) + static_cast<int64_t>(sizeof(Slab)));
constexpr int64_t slab_bytes(int targets) { return targets ? kSlabBytes : kMarkSlabBytes; }

inline bool has_room(const Ranked& ranking) {
  return ranking.bracket.low > ranking.bracket.high || ranking.candidates_end - ranking.candidates >= kMarkRoom;
}

// The cut that ends a selection among candidates.
struct Cut {
  uint32_t threshold;  // the last selected score
  int64_t last_tie;    // the highest index selected at that score
  bool splits_ties;    // whether others of that score are left out
};

// A block's candidates: how many, a bit per element, their scores unless `single`, which says that all have the
// bracket's, and their payload.
struct OfBlock {
  int64_t block, count;
  const uint32_t *marks, *scores, *payload;
  bool single;
};

// How many slabs hold `numel` elements, with payload of so many targets, if all are candidates; every thread needs one
// more.
inline int64_t mark_slabs(int64_t numel, int targets = 0) {
  const int64_t filled = (slab_bytes(targets) - static_cast<int64_t>(sizeof(Slab))) / 4 - mark_room(targets);
  return (numel + kBlock - 1) / kBlock * (mark_room(targets) - kMarkPad) / filled + 1;
}

// One thread's candidates of one ranking, as records (see Filling), compared with guesses at the cut. A full slab is
// compared while still in cache.
class Marks : public SlabList {
 public:
  // With payload of so many targets (see Totals), or without.
  explicit Marks(int targets = 0) : targets_(targets) {}

  // Call before the first slab. Candidates are in `bracket`; `likeliest` is a guess at the cut, any score. The
  // bracket's ends are guesses too, because masses of candidates may have these scores.
  void expect(Bracket bracket, uint32_t likeliest);
  bool add_slab(SlabPool* pool, Filling* filling) {
    Slab* const full = last_;
    if (!SlabList::add_slab(pool, filling)) return false;
    if (full) compare(full);
    return true;
  }
  // Call after the last record: compares the last slab.
  void finish() {
    if (last_) compare(last_);
  }
  // Compares all slabs again, with this score as the only guess.
  void guess(uint32_t score);

  uint32_t guessed(int guess) const { return guesses_[guess]; }
  bool single() const { return single_; }

  // Calls work(slab) for every slab that has records.
  template <class Work>
  void for_each_slab(const Work& work) const {
    for (const Slab* slab = first_; slab; slab = slab->next) {
      if (slab->highest >= 0) work(*slab);
    }
  }
  // Calls work(OfBlock) for every block of a slab.
  template <class Work>
  void for_each_in(const Slab& slab, const Work& work) const {
    const uint32_t* scores = slab.begin();
    const uint32_t* record =
        reinterpret_cast<const uint32_t*>(reinterpret_cast<const char*>(&slab) + slab_bytes(targets_));
    while (record != slab.back) {
      const uint32_t* const marks = record - kMarkWords + 2;
      uint64_t head;
      memcpy(&head, marks - 2, sizeof head);
      const int count = candidates_of(head);
      record = marks - 2 - payload_words(targets_, count);
      work(OfBlock{block_of(head), count, marks, scores, record, single_});
      scores += single_ ? 0 : count;
    }
  }

 private:
  void compare(Slab* slab) const;

  int targets_;
  bool single_ = false;  // the bracket is one score, so scores are not kept
  uint32_t guesses_[kGuesses] = {};
};

// The cut after the `wanted` largest of the lists' candidates; ties by lowest index. Every score is in `range`, every
// index below `numel`; 1 <= wanted <= the number of candidates. Uses one thread per list, and
// mark_selection_bytes(lists) of memory.
Cut select_marks(const std::vector<Marks*>& lists, int64_t wanted, Bracket range, int64_t numel);
int64_t mark_selection_bytes(int64_t lists);

// Adds the energies of the candidates of list i that the cut selects, which have payload, to totals[i].
void add_selected_energies(const std::vector<Marks*>& lists, const std::vector<Totals*>& totals, int targets, Cut cut);

}  // namespace fuseo1
#endif  // FUSEO1_CPU_SURVEY_MARKS_H_
