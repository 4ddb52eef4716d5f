// SPDX-License-Identifier: Apache-2.0
// Memory for candidates, elements that are kept until it is known whether they are selected.
#ifndef FUSEO1_CPU_SURVEY_SLABS_H_
#define FUSEO1_CPU_SURVEY_SLABS_H_

#include <stdint.h>

#include <atomic>
#include <new>

#include "kernels/table.h"

namespace fuseo1 {

// The head of a slab, which is filled from its front and from its back.
struct Slab {
  Slab* next;
  const uint32_t *end, *back;  // the free part
  int64_t lowest, highest;     // once compared (Marks): the blocks, and below the scores against the guesses
  GuessCounts scores;

  uint32_t* begin() { return reinterpret_cast<uint32_t*>(this + 1); }
  const uint32_t* begin() const { return reinterpret_cast<const uint32_t*>(this + 1); }
};

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

}  // namespace fuseo1
#endif  // FUSEO1_CPU_SURVEY_SLABS_H_
