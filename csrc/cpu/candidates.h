// SPDX-License-Identifier: Apache-2.0
// Elements whose selection is not known yet, kept until it is.
#ifndef FUSEO1_CPU_CANDIDATES_H_
#define FUSEO1_CPU_CANDIDATES_H_

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <memory>
#include <new>
#include <vector>

#include "kernels.h"

namespace fuseo1 {

// A growing run of candidate records (see Totals). Growth leaves new memory untouched, so that only what is filled
// becomes resident.
class Candidates {
 public:
  explicit Candidates(int targets) : targets_(targets), words_(candidate_words(targets)) {}

  // Room for `count` more; returns where they go. filled_to() then says where they end.
  uint32_t* reserve(int64_t count) {
    const int64_t need = used_ + count * words_;
    if (need > capacity_) {
      const int64_t larger = std::max(need, 2 * capacity_);
      void* grown = realloc(data_.get(), static_cast<size_t>(larger) * sizeof(uint32_t));
      if (!grown) throw std::bad_alloc();
      data_.release();
      data_.reset(static_cast<uint32_t*>(grown));
      capacity_ = larger;
    }
    return data_.get() + used_;
  }
  void filled_to(const uint32_t* end) { used_ = end - data_.get(); }
  int64_t count() const { return used_ / words_; }

  uint32_t score(int64_t c) const { return record(c)[0]; }
  int64_t index(int64_t c) const { return static_cast<int64_t>(record(c)[2]) << 32 | record(c)[1]; }
  int64_t last_index() const {  // the highest of all
    int64_t most = 0;
    for (int64_t c = 0, n = count(); c < n; ++c) most = std::max(most, index(c));
    return most;
  }
  void add_energy(int64_t c, Totals* totals) const {
    const uint32_t* t = record(c) + 3;
    const uint8_t* exponent = reinterpret_cast<const uint8_t*>(t + targets_);
    for (int i = 0; i < targets_; ++i) totals->bins[i][exponent[i]] += t[i];
  }

 private:
  struct Free {
    void operator()(uint32_t* p) const { free(p); }
  };
  const uint32_t* record(int64_t c) const { return data_.get() + c * words_; }

  int targets_;
  int64_t words_, used_ = 0, capacity_ = 0;
  std::unique_ptr<uint32_t, Free> data_;
};

// Where a selection among candidates ends.
struct Cut {
  uint32_t threshold;  // the last selected score
  int64_t last_tie;    // the highest index selected at that score
  bool splits_ties;    // whether others of that score are left out
};

// Selects the `wanted` best candidates of all lists: highest score first, ties by lowest index. The energies of list
// i's go to totals[i]. Every score lies in `range`; 1 <= wanted <= the number of candidates. A thread a list.
Cut select_candidates(const std::vector<const Candidates*>& lists, const std::vector<Totals*>& totals, int64_t wanted,
                      Bracket range);

}  // namespace fuseo1
#endif  // FUSEO1_CPU_CANDIDATES_H_
