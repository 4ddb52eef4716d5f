// SPDX-License-Identifier: Apache-2.0
// Candidates of a ranking by magnitude, kept as marks on their blocks: a light fine-tune in bf16 ties in masses, and
// then a bit and a score are a third of what a record of its own is.
#ifndef FUSEO1_CPU_MARKS_H_
#define FUSEO1_CPU_MARKS_H_

#include <stdint.h>

#include <algorithm>
#include <vector>

#include "candidates.h"

namespace fuseo1 {

constexpr int64_t kMarkSlabBytes = 32 << 10;  // small: every ranking of every thread fills one of its own
static_assert(kMarkSlabBytes >= 8 * 4 * kMarkRoom);

inline bool has_room(const Ranked& ranking) {
  return ranking.bracket.low > ranking.bracket.high || ranking.candidates_end - ranking.candidates >= kMarkRoom;
}

// How many slabs hold the candidates of `numel` elements, all of them; and one for every thread.
inline int64_t mark_slabs(int64_t numel) {
  constexpr int64_t kFilled = (kMarkSlabBytes - static_cast<int64_t>(sizeof(Slab))) / 4 - kMarkRoom;
  return (numel + kBlock - 1) / kBlock * (kMarkWords + kBlock) / kFilled + 1;
}

// One thread's candidates of one ranking, as records (see Ranked).
class Marks : public SlabList {
 public:
  // work(index of the block, how many, their bits, their scores) for every block that has some; `single`: the bracket
  // is one score, and none are kept.
  template <class Work>
  void for_each(bool single, const Work& work) {
    for (Slab* slab = first_; slab; slab = slab->next) {
      slab->lowest = INT64_MAX, slab->highest = -1;
      for_each_in(slab, single, [&](int64_t block, int64_t count, const uint32_t* marks, const uint32_t* scores) {
        slab->lowest = std::min(slab->lowest, block), slab->highest = std::max(slab->highest, block);
        work(block, count, marks, scores);
      });
    }
  }
  // The same for the blocks from index `low` to `high` alone, once for_each has been through all.
  template <class Work>
  void for_each_between(int64_t low, int64_t high, bool single, const Work& work) const {
    for (Slab* slab = first_; slab; slab = slab->next) {
      if (slab->highest < low || slab->lowest > high) continue;
      for_each_in(slab, single, [&](int64_t block, int64_t count, const uint32_t* marks, const uint32_t* scores) {
        if (low <= block && block <= high) work(block, count, marks, scores);
      });
    }
  }

 private:
  template <class Work>
  static void for_each_in(Slab* slab, bool single, const Work& work) {
    for (const uint32_t* r = slab->begin(); r != slab->end;) {
      const int64_t count = r[2];
      work(static_cast<int64_t>(r[1]) << 32 | r[0], count, r + 3, r + kMarkWords);
      r += kMarkWords + (single ? 0 : (count + kMarkPad - 1) / kMarkPad * kMarkPad);
    }
  }
};

// The cut after the `wanted` largest of the lists' candidates; ties go to the lowest index. `likeliest` is a guess at
// its threshold, any score. The other arguments are as for select_candidates; takes mark_selection_bytes(lists).
Cut select_marks(const std::vector<Marks*>& lists, int64_t wanted, Bracket range, uint32_t likeliest, int64_t numel);
int64_t mark_selection_bytes(int64_t lists);

}  // namespace fuseo1
#endif  // FUSEO1_CPU_MARKS_H_
