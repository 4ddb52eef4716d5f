// SPDX-License-Identifier: Apache-2.0
// The stand-in's threads (cuda_runtime.h). A CTA has a thread of the host, for its shared memory is thread-local; a
// CTA's threads are fibers there. One fiber of all runs at a time, and a seed decides which.
#include <cuda_runtime.h>
#include <link.h>
#include <linux/futex.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#include "ordering.h"

namespace emulation {

dim3 thread_index, block_index, block_size, grid_size;

namespace {

constexpr size_t kStackBytes = 256 << 10;
constexpr unsigned kLanes = 32, kMostThreads = 1024, kMostResident = 4;
constexpr int kPoison = 0xa5;
// One in so many threads that come to a call lets another CTA run. ThreadSanitizer takes CTAs that follow each other on
// a thread as ordered, so it gets few of these.
#ifdef FUSEO1_TSAN
constexpr unsigned kTurnAtBarrier = 16, kTurnAtCollective = 512, kLeastResident = 3;
#else
constexpr unsigned kTurnAtBarrier = 256, kTurnAtCollective = 8192, kLeastResident = 1;
#endif

uint64_t seed = 1, launches;
std::mt19937_64 randomness(1);
Board launch_begins, launch_ends;
std::mutex one_launch;  // at a time, for the kernels of several threads of the host

// A number below `n` that the seed decides.
unsigned drawn(unsigned n) { return static_cast<unsigned>((randomness() >> 32) * n >> 32); }

// A call in the source, and where that is in the machine code, which differs for what is inlined at different places.
struct Place {
  Call call;
  const void* address;
  bool operator==(const Place& other) const { return address == other.address && call.line == other.call.line; }
};

struct Fiber {
  ucontext_t start;
  jmp_buf at;
  std::unique_ptr<char[]> stack;
  unsigned thread;
  bool started, ended;
  Place waits_at;
  Ordered ordered;
};

// Those that are to come to the same call: a CTA's threads, or a warp's lanes.
struct Meeting {
  Place place;
  unsigned first, arrived, round;
  uint64_t given[kLanes], taken[kLanes];
  Board boards[2];  // of even and of odd rounds

  Board* board() { return &boards[round % 2]; }
};

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

class Cta {
 public:
  // Begins to run CTA number `index` when it has its turn.
  void begin(unsigned index) { index_ = index, busy_ = true; }
  void start_thread() { std::thread(&Cta::work, this).detach(); }
  Turn& turn() { return turn_; }

  void barrier(const Place& place);
  const uint64_t* exchange(const Place& place, unsigned mask, uint64_t mine, bool orders);
  [[noreturn]] void live();  // the fibers' function
  [[noreturn]] void give_up(const char* what, unsigned one, const Place& there, unsigned other, const Place& elsewhere);
  Fiber& running() { return *running_; }

 private:
  void work();
  void run_one();
  void prepare(unsigned thread);
  void arrive(Meeting& meeting, const Place& place);
  void end_round(Meeting& meeting, unsigned begin, unsigned end);
  void run_another();
  void enter(Fiber& fiber);
  void let_others(unsigned one_in);
  [[noreturn]] void give_up_waiting();

  Turn turn_;
  bool busy_ = false;
  unsigned index_ = 0, alive_ = 0, window_ = 1;
  Fiber home_ = {}, *running_ = nullptr;  // home_: the host's thread itself
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<unsigned> runnable_;
  Meeting barrier_ = {};
  std::vector<Meeting> warps_;
  Board begins_, ends_;
  std::pair<char*, size_t> shared_;
};

// The kernel, and the CTAs in their order.
void (*kernel)(void*);
void* argument;
std::vector<unsigned> order;
size_t next_in_order;
// Never destroyed: their threads wait for a turn when the process ends.
auto& residents = *new std::vector<std::unique_ptr<Cta>>;
Cta* current;
Turn host;

// Where the calling thread has all of the kernels' shared memory, and its bytes.
std::pair<char*, size_t> shared_memory() {
  static thread_local char probe;
  std::pair<char*, size_t> found = {&probe, 1};
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* to) {
        auto* found = static_cast<std::pair<char*, size_t>*>(to);
        const auto* begin = static_cast<char*>(info->dlpi_tls_data);
        for (int i = 0; begin && i < info->dlpi_phnum; ++i) {
          const ElfW(Phdr) & header = info->dlpi_phdr[i];
          if (header.p_type != PT_TLS || found->first < begin || found->first >= begin + header.p_memsz) continue;
          *found = {static_cast<char*>(info->dlpi_tls_data), header.p_memsz};
          return 1;
        }
        return 0;
      },
      &found);
  return found;
}

void Cta::give_up(const char* what, unsigned one, const Place& there, unsigned other, const Place& elsewhere) {
  fprintf(stderr,
          "CUDA on the host: %s: thread %u at %s (%s:%d), thread %u at %s (%s:%d)%s; CTA %u, seed %llu, launch %llu\n",
          what, one, there.call.what, there.call.file, there.call.line, other, elsewhere.call.what, elsewhere.call.file,
          elsewhere.call.line, there.call.line == elsewhere.call.line ? ", by different ways" : "", index_,
          static_cast<unsigned long long>(seed), static_cast<unsigned long long>(launches));
  abort();
}

void Cta::give_up_waiting() {
  const Fiber *first = nullptr, *other = nullptr;
  for (unsigned t = 0; t < block_size.x; ++t) {
    const Fiber& fiber = *fibers_[t];
    if (fiber.ended) continue;
    if (!first) first = &fiber;
    if (!(fiber.waits_at == first->waits_at)) other = &fiber;
  }
  if (other) give_up("threads wait for one another", first->thread, first->waits_at, other->thread, other->waits_at);
  const Place ended = {{"its end", "", 0}, nullptr};
  for (unsigned t = 0; t < block_size.x; ++t) {
    if (fibers_[t]->ended) give_up("threads wait for one that has ended", first->thread, first->waits_at, t, ended);
  }
  abort();
}

// One that returns twice, without the system call of swapcontext.
void jump(Fiber& from, Fiber& to) {
  if (_setjmp(from.at)) return;
  to.ordered.enter();
  if (to.started) _longjmp(to.at, 1);
  to.started = true;
  setcontext(&to.start);
}

void Cta::enter(Fiber& fiber) {
  Fiber& from = *running_;
  running_ = &fiber, thread_index = {fiber.thread, 0, 0};
  if (&from != &fiber) jump(from, fiber);
}

// Runs one of those that can run; with a small window the threads that met last go on first.
void Cta::run_another() {
  if (runnable_.empty()) give_up_waiting();
  const auto most = static_cast<unsigned>(runnable_.size());
  unsigned& chosen = runnable_[most - 1 - drawn(std::min(window_, most))];
  const unsigned thread = chosen;
  chosen = runnable_.back(), runnable_.pop_back();
  enter(*fibers_[thread]);
}

// Perhaps passes the turn to another CTA, and waits until it comes back.
void Cta::let_others(unsigned one_in) {
  if (order.size() == 1 || drawn(one_in)) return;
  Cta& other = *residents[drawn(static_cast<unsigned>(residents.size()))];
  if (&other == this || !other.busy_) return;
  current = &other;
  other.turn_.give();
  turn_.wait();
  block_index = {index_, 0, 0}, thread_index = {running_->thread, 0, 0};
}

void Cta::arrive(Meeting& meeting, const Place& place) {
  running_->waits_at = place;
  if (meeting.arrived++ == 0) meeting.place = place, meeting.first = running_->thread;
  if (meeting.place == place) return;
  give_up("threads meet at different calls", meeting.first, meeting.place, running_->thread, place);
}

// All of the threads from `begin` to `end` can go on.
void Cta::end_round(Meeting& meeting, unsigned begin, unsigned end) {
  memcpy(meeting.taken, meeting.given, sizeof meeting.given);
  meeting.arrived = 0, ++meeting.round;
  for (unsigned t = begin; t < end; ++t) {
    if (!fibers_[t]->ended) runnable_.push_back(t);
  }
}

void Cta::barrier(const Place& place) {
  arrive(barrier_, place);
  Board* const board = barrier_.board();
  running_->ordered.publish(board);
  if (barrier_.arrived == alive_) end_round(barrier_, 0, block_size.x);
  let_others(kTurnAtBarrier);
  run_another();
  running_->ordered.learn(board);
}

const uint64_t* Cta::exchange(const Place& place, unsigned mask, uint64_t mine, bool orders) {
  if (mask != 0xffffffffu) {
    fprintf(stderr, "CUDA on the host: a part of a warp is not emulated (%s:%d)\n", place.call.file, place.call.line);
    abort();
  }
  const unsigned lane = running_->thread % kLanes, begin = running_->thread - lane;
  Meeting& warp = warps_[begin / kLanes];
  arrive(warp, place);
  Board* const board = warp.board();
  if (orders) running_->ordered.publish(board);
  warp.given[lane] = mine;
  if (warp.arrived == kLanes) end_round(warp, begin, begin + kLanes);
  let_others(kTurnAtCollective);
  run_another();
  if (orders) running_->ordered.learn(board);
  return warp.taken;
}

void Cta::live() {
  for (;;) {
    Ordered::learn_all(&launch_begins), Ordered::learn_all(&begins_);
    kernel(argument);
    Ordered::publish_all(&launch_ends), Ordered::publish_all(&ends_);
    running_->ended = true;
    if (--alive_ == 0) {
      enter(home_);
      continue;
    }
    // Those that returned no longer count at a barrier.
    if (barrier_.arrived == alive_) end_round(barrier_, 0, block_size.x);
    run_another();
  }
}

void start_fiber() { current->live(); }

void Cta::prepare(unsigned thread) {
  if (fibers_.size() == thread) {
    fibers_.push_back(std::make_unique<Fiber>());
    Fiber& fresh = *fibers_.back();
    fresh.thread = thread;
    fresh.stack.reset(new char[kStackBytes]);
    getcontext(&fresh.start);
    fresh.start.uc_stack.ss_sp = fresh.stack.get();
    fresh.start.uc_stack.ss_size = kStackBytes;
    makecontext(&fresh.start, start_fiber, 0);
    fresh.ordered.create();
  }
  fibers_[thread]->ended = false;
  fibers_[thread]->ordered.forget();
}

void Cta::run_one() {
  block_index = {index_, 0, 0};
  for (unsigned t = 0; t < block_size.x; ++t) prepare(t);
  alive_ = block_size.x;
  barrier_ = Meeting();
  warps_.assign(block_size.x / kLanes, Meeting());
  runnable_.resize(block_size.x);
  std::iota(runnable_.begin(), runnable_.end(), 0u);
  window_ = drawn(2) ? kLanes : kMostThreads;
  Ordered::learn_all(&ends_);
  memset(shared_.first, kPoison, shared_.second);
  Ordered::publish_all(&begins_);
  run_another();
}

void Cta::work() {
  shared_ = shared_memory();
  running_ = &home_, home_.started = true, home_.ordered.adopt();
  for (;;) {
    turn_.wait();
    for (;;) {
      run_one();
      if (next_in_order == order.size()) break;
      index_ = order[next_in_order++];
    }
    busy_ = false;
    std::vector<Cta*> others;
    for (const auto& other : residents) {
      if (other->busy_) others.push_back(other.get());
    }
    current = others.empty() ? nullptr : others[drawn(static_cast<unsigned>(others.size()))];
    (current ? current->turn_ : host).give();
  }
}

// Makes sure that there are threads for `count` CTAs, in this process.
void reside(size_t count) {
  static pid_t owner;
  if (owner != getpid()) {
    for (auto& lost : residents) lost.release();
    residents.clear(), owner = getpid();
  }
  while (residents.size() < count) {
    residents.push_back(std::make_unique<Cta>());
    residents.back()->start_thread();
  }
}

}  // namespace

unsigned multiprocessors() {
  const std::lock_guard<std::mutex> lock(one_launch);
  return 2 + drawn(4);
}

void cta_barrier(const Call& call) { current->barrier({call, __builtin_return_address(0)}); }

const uint64_t* exchange(const Call& call, unsigned mask, uint64_t mine) {
  return current->exchange({call, __builtin_return_address(0)}, mask, mine, false);
}

void sync_warp(const Call& call) { current->exchange({call, __builtin_return_address(0)}, 0xffffffffu, 0, true); }

#ifdef FUSEO1_TSAN
void fence() { current->running().ordered.fence(); }
void touch(const void* location) { current->running().ordered.touch(location); }
#endif

void run(unsigned ctas, unsigned threads, void (*body)(void*), void* context) {
  const std::lock_guard<std::mutex> lock(one_launch);
  if (threads % kLanes || threads > kMostThreads) fprintf(stderr, "CUDA on the host: %u threads\n", threads), abort();
  kernel = body, argument = context;
  grid_size = {ctas, 1, 1}, block_size = {threads, 1, 1};
  randomness.seed(seed << 32 | ++launches);
  order.resize(ctas);
  std::iota(order.begin(), order.end(), 0u);
  std::shuffle(order.begin(), order.end(), randomness);
  const unsigned held = std::min(ctas, kLeastResident + drawn(kMostResident - kLeastResident + 1));
  reside(held);
  for (next_in_order = 0; next_in_order < held; ++next_in_order) {
    residents[next_in_order]->begin(order[next_in_order]);
  }
  Ordered::forget_all();
  Ordered::publish_all(&launch_begins);
  current = residents[drawn(held)].get();
  current->turn().give();
  host.wait();
  Ordered::learn_all(&launch_ends);
}

}  // namespace emulation

// For tests: what is run from now on is run in the order of this seed.
extern "C" void emulation_seed(uint64_t seed) {
  const std::lock_guard<std::mutex> lock(emulation::one_launch);
  emulation::seed = seed, emulation::launches = 0;
  emulation::randomness.seed(seed);
}
