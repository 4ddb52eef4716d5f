// SPDX-License-Identifier: Apache-2.0
// Candidates: elements that are kept until it is known whether they are selected.
#ifndef FUSEO1_CPU_SURVEY_CANDIDATES_H_
#define FUSEO1_CPU_SURVEY_CANDIDATES_H_

#include <stdint.h>

#include <atomic>
#include <new>
#include <vector>

#include "kernels/table.h"
#include "pages.h"

namespace fuseo1 {

// Candidates fill slabs of this size, which threads take from a common pool. A slab holds at least three blocks'
// candidates of any number of targets: the room lost at its end, less than a block's, stays small.
constexpr int64_t kSlabBytes = 256 << 10;

// The head of a slab, which is filled from its front, and for Marks from its back, too.
struct Slab {
  Slab* next;
  const uint32_t *end, *back;  // the free part
  int64_t lowest, highest;     // for Marks, once compared: the blocks, and below the scores against the guesses
  GuessCounts scores;

  uint32_t* begin() { return reinterpret_cast<uint32_t*>(this + 1); }
  const uint32_t* begin() const { return reinterpret_cast<const uint32_t*>(this + 1); }
};
constexpr int64_t kSlabWords = (kSlabBytes - static_cast<int64_t>(sizeof(Slab))) / 4;
static_assert(kSlabWords >= 3 * kBlock * candidate_words(FUSEO1_MAX_TARGETS));

// How many slabs hold `count` candidates, however `threads` lists share them: a list goes on to its next slab when less
// than a block's room is left, and its last slab may be nearly empty.
inline int64_t slabs_for(int64_t count, int targets, int threads) {
  const int64_t words = candidate_words(targets);
  return count * words / (kSlabWords - kBlock * words) + threads;
}

// Memory that the caller lends.
struct Loan {
  char* start = nullptr;
  int64_t bytes = 0;
};

// Slabs in a first memory, then in a second one.
class SlabPool {
 public:
  SlabPool(Loan first, Loan second, int64_t slab_bytes)
      : first_(first), second_(second), slab_bytes_(slab_bytes), in_first_(first.bytes / slab_bytes) {}

  void* take() {  // nullptr if none is left
    const int64_t slab = taken_.fetch_add(1, std::memory_order_relaxed);
    if (slab < in_first_) return first_.start + slab * slab_bytes_;
    const int64_t at = (slab - in_first_) * slab_bytes_;
    return at + slab_bytes_ <= second_.bytes ? second_.start + at : nullptr;
  }
  int64_t slab_bytes() const { return slab_bytes_; }

 private:
  Loan first_, second_;
  int64_t slab_bytes_, in_first_;
  std::atomic<int64_t> taken_{0};
};

// One thread's slabs, filled with records of words.
class SlabList {
 public:
  // Lets `filling` fill a new slab; false if none is left. filled() notes which part of the last one is free.
  bool add_slab(SlabPool* pool, Filling* filling) {
    void* memory = pool->take();
    if (!memory) return false;
    filled(*filling);
    Slab* slab = new (memory) Slab{};
    (last_ ? last_->next : first_) = slab;
    last_ = slab;
    filling->candidates = slab->begin();
    filling->candidates_end = reinterpret_cast<uint32_t*>(static_cast<char*>(memory) + pool->slab_bytes());
    return true;
  }
  void filled(const Filling& filling) {
    if (last_) last_->end = filling.candidates, last_->back = filling.candidates_end;
  }

 protected:
  Slab *first_ = nullptr, *last_ = nullptr;
};

// One thread's candidates, as records (see Totals).
class Candidates : public SlabList {
 public:
  explicit Candidates(int targets) : targets_(targets) {}

  template <class Work>
  void for_each(const Work& work) const {
    for (Slab* slab = first_; slab; slab = slab->next) {
      for (const uint32_t* r = slab->begin(); r != slab->end; r += candidate_words(targets_)) work(r);
    }
  }
  int64_t count() const {
    int64_t sum = 0;
    for (Slab* slab = first_; slab; slab = slab->next) sum += (slab->end - slab->begin()) / candidate_words(targets_);
    return sum;
  }

  static uint32_t score(const uint32_t* record) { return record[0]; }
  static int64_t index(const uint32_t* record) { return static_cast<int64_t>(record[2]) << 32 | record[1]; }
  void add_energy(const uint32_t* record, Totals* totals) const {
    const uint32_t* t = record + 3;
    const uint8_t* exponent = reinterpret_cast<const uint8_t*>(t + targets_);
    for (int i = 0; i < targets_; ++i) totals->bins[i][exponent[i]] += t[i];
  }

 private:
  int targets_;
};

// The cut that ends a selection among candidates.
struct Cut {
  uint32_t threshold;  // the last selected score
  int64_t last_tie;    // the highest index selected at that score
  bool splits_ties;    // whether others of that score are left out
};

// Selects the `wanted` best candidates of all lists: highest score first, ties by lowest index. The energies of those
// of list i are added to totals[i]. Every score is in `range`, every index below `numel`; 1 <= wanted <= the number of
// candidates. Uses one thread per list, and selection_bytes(lists) of memory.
Cut select_candidates(const std::vector<const Candidates*>& lists, const std::vector<Totals*>& totals, int64_t wanted,
                      Bracket range, int64_t numel);
int64_t selection_bytes(int64_t lists);

}  // namespace fuseo1
#endif  // FUSEO1_CPU_SURVEY_CANDIDATES_H_
