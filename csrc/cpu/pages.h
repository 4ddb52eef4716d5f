// SPDX-License-Identifier: Apache-2.0
// Memory mapped from the system: all of it is returned when it is freed, where malloc would keep some, and it is
// resident only once it is touched.
#ifndef FUSEO1_CPU_PAGES_H_
#define FUSEO1_CPU_PAGES_H_

#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>

#include <new>
#include <vector>

namespace fuseo1 {

// kFill: every page is about to be written, and faulting them in one by one costs more than all at once.
template <class T, bool kFill>
struct PageAllocator {
  using value_type = T;
  template <class U>
  struct rebind {
    using other = PageAllocator<U, kFill>;
  };

  T* allocate(size_t count) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | (kFill ? kPopulate : 0);
    void* pages = mmap(nullptr, count * sizeof(T), PROT_READ | PROT_WRITE, flags, -1, 0);
    if (pages == MAP_FAILED) throw std::bad_alloc();
    return static_cast<T*>(pages);
  }
  void deallocate(T* pages, size_t count) { munmap(pages, count * sizeof(T)); }

  bool operator==(const PageAllocator&) const { return true; }
  bool operator!=(const PageAllocator&) const { return false; }

 private:
#if defined(MAP_POPULATE)
  static constexpr int kPopulate = MAP_POPULATE;
#else
  static constexpr int kPopulate = 0;
#endif
};

// A growing vector holds its old and its new memory at once: reserve or resize it, once.
template <class T>
using Pages = std::vector<T, PageAllocator<T, true>>;

// Memory that is filled as far as needed. In huge pages: faulting in small ones one by one costs as much as the survey.
class Room {
 public:
  // `needed` false: if the system refuses, the room has no bytes.
  explicit Room(size_t bytes, bool needed = true) {
    if (bytes == 0) return;
    try {
      start_ = PageAllocator<char, false>().allocate(bytes);
    } catch (const std::bad_alloc&) {
      if (needed) throw;
      return;
    }
    bytes_ = bytes;
#if defined(MADV_HUGEPAGE)
    madvise(start_, bytes, MADV_HUGEPAGE);
#endif
  }
  ~Room() {
    if (bytes_) munmap(start_, bytes_);
  }
  Room(const Room&) = delete;
  Room& operator=(const Room&) = delete;

  char* start() const { return start_; }
  int64_t bytes() const { return static_cast<int64_t>(bytes_); }

 private:
  size_t bytes_ = 0;
  char* start_ = nullptr;
};

}  // namespace fuseo1
#endif  // FUSEO1_CPU_PAGES_H_
