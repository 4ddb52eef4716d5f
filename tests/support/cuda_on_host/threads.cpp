// SPDX-License-Identifier: Apache-2.0
// The stand-in's threads (cuda_runtime.h). A CTA has a thread of the host, for its shared memory is thread-local; a
// CTA's threads are fibers there. One fiber of all runs at a time, and a seed decides which.
#include <cuda_runtime.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>
#include <unistd.h>

#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#include "meeting.h"
#include "ordering.h"
#include "shared_memory.h"
#include "turn.h"

namespace emulation {

dim3 thread_index, block_index, block_size, grid_size;

namespace {

constexpr size_t kStackBytes = 256 << 10;
constexpr unsigned kMostThreads = 1024, kMostResident = 4;
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

struct Fiber {
  ucontext_t start;
  jmp_buf at;
  std::unique_ptr<char[]> stack;
  unsigned thread;
  bool started, ended;
  Place waits_at;
  Ordered ordered;
};

class Cta {
 public:
  // Begins to run CTA number `index` when it has its turn.
  void begin(unsigned index) { index_ = index, busy_ = true; }
  void start_thread() { std::thread(&Cta::work, this).detach(); }
  Turn& turn() { return turn_; }
  bool can_run() const { return busy_ && !waits_; }

  void barrier(const Place& place);
  void grid_barrier(const Place& place);
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
  void wait_for_others(const Place& place);
  void pass_turn(Cta& to);
  void enter(Fiber& fiber);
  void let_others(unsigned one_in);
  [[noreturn]] void give_up_waiting();

  Turn turn_;
  bool busy_ = false, waits_ = false;  // it runs a CTA; whose threads have all come to a barrier of the grid
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
bool may_wait;     // for each other
Meeting the_grid;  // the CTAs, at its barriers
// Never destroyed: their threads wait for a turn when the process ends.
auto& residents = *new std::vector<std::unique_ptr<Cta>>;
Cta* current;
Turn host;

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
  if (&other != this && other.can_run()) pass_turn(other);
}

// Lets another CTA run, until the turn comes back.
void Cta::pass_turn(Cta& to) {
  current = &to;
  to.turn_.give();
  turn_.wait();
  block_index = {index_, 0, 0}, thread_index = {running_->thread, 0, 0};
}

// One of the CTAs that can run; nullptr if there is none.
Cta* any_runnable() {
  std::vector<Cta*> able;
  for (const auto& cta : residents) {
    if (cta->can_run()) able.push_back(cta.get());
  }
  return able.empty() ? nullptr : able[drawn(static_cast<unsigned>(able.size()))];
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

// For the CTA, whose threads have all come to a barrier of the grid.
void Cta::wait_for_others(const Place& place) {
  if (the_grid.arrived++ == 0) the_grid.place = place, the_grid.first = running_->thread;
  if (!(the_grid.place == place)) {
    give_up("CTAs meet at different calls", the_grid.first, the_grid.place, running_->thread, place);
  }
  if (the_grid.arrived == order.size()) {
    for (const auto& cta : residents) cta->waits_ = false;
    the_grid.arrived = 0, ++the_grid.round;
    return;
  }
  waits_ = true;
  Cta* const other = any_runnable();
  if (!other) give_up("CTAs wait for one that has ended", running_->thread, place, running_->thread, place);
  pass_turn(*other);
}

void Cta::grid_barrier(const Place& place) {
  if (!may_wait) give_up("the launch lets no CTA wait", running_->thread, place, running_->thread, place);
  arrive(barrier_, place);
  Board* const board = the_grid.board();
  running_->ordered.publish(board);
  if (barrier_.arrived == alive_) {
    wait_for_others(place);
    end_round(barrier_, 0, block_size.x);
  }
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
    if (the_grid.arrived) {
      give_up("CTAs wait for one that has ended", the_grid.first, the_grid.place, 0, {{"its end", "", 0}, nullptr});
    }
    current = any_runnable();
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

void grid_barrier(const Call& call) { current->grid_barrier({call, __builtin_return_address(0)}); }

const uint64_t* exchange(const Call& call, unsigned mask, uint64_t mine) {
  return current->exchange({call, __builtin_return_address(0)}, mask, mine, false);
}

void sync_warp(const Call& call) { current->exchange({call, __builtin_return_address(0)}, 0xffffffffu, 0, true); }

#ifdef FUSEO1_TSAN
void fence() { current->running().ordered.fence(); }
void touch(const void* location) { current->running().ordered.touch(location); }
#endif

void run(bool waits, unsigned ctas, unsigned threads, void (*body)(void*), void* context) {
  const std::lock_guard<std::mutex> lock(one_launch);
  if (threads % kLanes || threads > kMostThreads) fprintf(stderr, "CUDA on the host: %u threads\n", threads), abort();
  kernel = body, argument = context;
  grid_size = {ctas, 1, 1}, block_size = {threads, 1, 1};
  randomness.seed(seed << 32 | ++launches);
  order.resize(ctas);
  std::iota(order.begin(), order.end(), 0u);
  std::shuffle(order.begin(), order.end(), randomness);
  const unsigned least = waits ? ctas : kLeastResident, most = std::max(least, kMostResident);
  const unsigned held = std::min(ctas, least + drawn(most - least + 1));
  may_wait = waits, the_grid = Meeting();
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
