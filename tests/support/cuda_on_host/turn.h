// SPDX-License-Identifier: Apache-2.0
// One thread of the host at a time runs CTAs.
#ifndef FUSEO1_TESTS_TURN_H_
#define FUSEO1_TESTS_TURN_H_

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>

namespace emulation {

// Whose turn it is to run. ThreadSanitizer knows nothing of it, because CUDA orders nothing by it.
class Turn {
 public:
  void give() {
    mine_ = 1;
    syscall(SYS_futex, &mine_, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
  }
  void wait() {
    while (!mine_.exchange(0)) syscall(SYS_futex, &mine_, FUTEX_WAIT_PRIVATE, 0, nullptr, nullptr, 0);
  }

 private:
  std::atomic<int> mine_{0};
};

}  // namespace emulation

#endif  // FUSEO1_TESTS_TURN_H_
