// SPDX-License-Identifier: Apache-2.0
// Threads for one pass over a chunk; they take its segments one by one.
#ifndef FUSEO1_CPU_PARALLEL_H_
#define FUSEO1_CPU_PARALLEL_H_

#include <stdint.h>

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#include <algorithm>
#include <atomic>
#include <exception>
#include <thread>
#include <vector>

namespace fuseo1 {

// Segments lie at multiples of this many elements of the flat tensor. 65,536 x 4 streams of bf16 are 512 KiB: large
// enough that taking one costs nothing, small enough that threads finish together.
constexpr int64_t kSegment = 65536;

// Rounds to nearest and keeps denormals: the caller's thread may be set otherwise (torch.set_flush_denormal).
class DefaultFloatingPoint {
 public:
#if defined(__SSE__)
  DefaultFloatingPoint() : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
  ~DefaultFloatingPoint() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#elif defined(__aarch64__)
  DefaultFloatingPoint() {
    __asm__ volatile("mrs %0, fpcr" : "=r"(saved_));
    __asm__ volatile("msr fpcr, %0" ::"r"(uint64_t{0}));
  }
  ~DefaultFloatingPoint() { __asm__ volatile("msr fpcr, %0" ::"r"(saved_)); }

 private:
  uint64_t saved_;
#endif
};

// Calls work(0) .. work(count - 1), each on a thread of its own; if the system grants fewer threads, or no memory for
// them, the caller's does the rest. Throws nothing, and neither may work.
template <class Work>
void in_parallel(int64_t count, const Work& work) {
  const auto guarded = [&](int64_t i) {
    const DefaultFloatingPoint guard;
    work(i);
  };
  std::vector<std::thread> others;
  int64_t started = 1;
  try {
    others.reserve(static_cast<size_t>(std::max<int64_t>(count, 0)));
    for (; started < count; ++started) others.emplace_back(guarded, started);
  } catch (const std::exception&) {
  }
  if (count > 0) guarded(0);
  for (; started < count; ++started) guarded(started);
  for (std::thread& t : others) t.join();
}

// How many segments [offset, offset + count) touches.
inline int64_t segments_of(int64_t offset, int64_t count, int64_t segment = kSegment) {
  return (offset + count + segment - 1) / segment - offset / segment;
}

// Calls work(thread, begin, end) on each segment of [offset, offset + count); begin and end count from `offset`. work
// must not throw.
template <class Work>
void for_each_segment(int64_t offset, int64_t count, int threads, const Work& work, int64_t segment = kSegment) {
  const int64_t first = offset / segment, segments = segments_of(offset, count, segment);
  std::atomic<int64_t> next{0};
  in_parallel(std::min<int64_t>(threads, segments), [&](int64_t thread) {
    for (int64_t s; (s = next.fetch_add(1, std::memory_order_relaxed)) < segments;) {
      const int64_t begin = std::max<int64_t>((first + s) * segment - offset, 0);
      const int64_t end = std::min<int64_t>((first + s + 1) * segment - offset, count);
      work(static_cast<int>(thread), begin, end);
    }
  });
}

}  // namespace fuseo1
#endif  // FUSEO1_CPU_PARALLEL_H_
