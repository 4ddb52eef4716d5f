// SPDX-License-Identifier: Apache-2.0
// Candidates of a ranking by magnitude, kept as marks on their blocks: a light fine-tune in bf16 has masses of ties,
// for which a bit and a score take a third of the memory of a record each.
#ifndef FUSEO1_CPU_SURVEY_MARKS_H_
#define FUSEO1_CPU_SURVEY_MARKS_H_

#include <stdint.h>
#include <string.h>

#include <algorithm>
#include <vector>

#include "candidates.h"

namespace fuseo1 {

constexpr int64_t kMarkSlabBytes = 32 << 10;  // small: every ranking of every thread fills its own
static_assert(kMarkSlabBytes >= 8 * 4 * kMarkRoom);

inline bool has_room(const Ranked& ranking) {
  return ranking.bracket.low > ranking.bracket.high || ranking.candidates_end - ranking.candidates >= kMarkRoom;
}

// How many slabs hold `numel` elements if all are candidates; every thread needs one more.
inline int64_t mark_slabs(int64_t numel) {
  constexpr int64_t kFilled = (kMarkSlabBytes - static_cast<int64_t>(sizeof(Slab))) / 4 - kMarkRoom;
  return (numel + kBlock - 1) / kBlock * (kMarkWords + kBlock) / kFilled + 1;
}

// One thread's candidates of one ranking, as records (see Ranked), compared with guesses at the cut. A full slab is
// compared while still in cache.
class Marks : public SlabList {
 public:
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
  // Calls work(number of the block, how many candidates, their bits, their scores unless single()) for every block of a
  // slab.
  template <class Work>
  void for_each_in(const Slab& slab, const Work& work) const {
    const uint32_t* scores = slab.begin();
    const uint32_t* record = reinterpret_cast<const uint32_t*>(reinterpret_cast<const char*>(&slab) + kMarkSlabBytes);
    while (record != slab.back) {
      record -= kMarkWords;
      uint64_t head;
      memcpy(&head, record, sizeof head);
      const int64_t count = head % 512;
      work(static_cast<int64_t>(head / 512), count, record + 2, scores);
      scores += single_ ? 0 : count;
    }
  }

 private:
  void compare(Slab* slab) const;

  bool single_ = false;  // the bracket is one score, so scores are not kept
  uint32_t guesses_[kGuesses] = {};
};

// The cut after the `wanted` largest of the lists' candidates; ties by lowest index. The other arguments are as for
// select_candidates. Uses mark_selection_bytes(lists) of memory.
Cut select_marks(const std::vector<Marks*>& lists, int64_t wanted, Bracket range, int64_t numel);
int64_t mark_selection_bytes(int64_t lists);

}  // namespace fuseo1
#endif  // FUSEO1_CPU_SURVEY_MARKS_H_
