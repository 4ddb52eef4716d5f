// SPDX-License-Identifier: Apache-2.0
// What CUDA orders between threads, told to ThreadSanitizer; without it (FUSEO1_TSAN) all of this is nothing.
//
// A launch follows the one before. __syncthreads and __syncwarp order what lies before them and after them, for those
// that meet; other collectives order nothing. Atomic operations are relaxed: they order something only between fences,
// which are sequentially consistent. So a thread at a fence publishes all that it knows as a stamp; barriers and atomic
// operations pass stamps on; and what a stamp stands for is known to a thread that has seen it and then comes to a
// fence.
#ifndef FUSEO1_TESTS_ORDERING_H_
#define FUSEO1_TESTS_ORDERING_H_

#ifdef FUSEO1_TSAN

#include <stdio.h>
#include <stdlib.h>

#include <bitset>
#include <map>

extern "C" {
void* __tsan_get_current_fiber(void);
void* __tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* at);
void __tsan_release(void* at);
}

namespace emulation {

constexpr unsigned kMostStamps = 8192, kOrdersNothing = 1;
using Stamps = std::bitset<kMostStamps>;

// What threads leave where they meet, or in a place in memory.
struct Board {
  Stamps fenced, seen;
};

// A thread as ThreadSanitizer sees it.
class Ordered {
 public:
  void create() { fiber_ = __tsan_create_fiber(0); }
  void adopt() { fiber_ = __tsan_get_current_fiber(); }
  void enter() { __tsan_switch_to_fiber(fiber_, kOrdersNothing); }

  static void publish_all(Board* board) { __tsan_release(board); }
  static void learn_all(Board* board) { __tsan_acquire(board); }
  // At a barrier, before and after.
  void publish(Board* board) {
    publish_all(board);
    board->fenced |= fenced_, board->seen |= seen_;
  }
  void learn(Board* board) {
    learn_all(board);
    fenced_ |= board->fenced, seen_ |= board->seen;
  }
  void fence() {
    for (size_t i = seen_._Find_first(); i < kMostStamps; i = seen_._Find_next(i)) __tsan_acquire(&stamps()[i]);
    if (next() == kMostStamps) fprintf(stderr, "CUDA on the host: too many fences in a launch\n"), abort();
    __tsan_release(&stamps()[next()]);
    fenced_.set(next()++);
  }
  void touch(const void* location) {
    if (next() == 0) return;
    Stamps& left = memory()[location];
    seen_ |= left, left |= fenced_;
  }
  void forget() { fenced_.reset(), seen_.reset(); }
  static void forget_all() { next() = 0, memory().clear(); }

 private:
  static double* stamps() {
    static double all[kMostStamps];  // only their addresses are used
    return all;
  }
  static unsigned& next() {
    static unsigned number;
    return number;
  }
  static std::map<const void*, Stamps>& memory() {
    static std::map<const void*, Stamps> all;
    return all;
  }
  void* fiber_ = nullptr;
  Stamps fenced_, seen_;
};

}  // namespace emulation

#else

namespace emulation {

struct Board {};
struct Ordered {
  void create() {}
  void adopt() {}
  void enter() {}
  static void publish_all(Board*) {}
  static void learn_all(Board*) {}
  void publish(Board*) {}
  void learn(Board*) {}
  void forget() {}
  static void forget_all() {}
};

}  // namespace emulation

#endif
#endif  // FUSEO1_TESTS_ORDERING_H_
