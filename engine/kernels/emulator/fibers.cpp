// How the emulation runs a launch: see cuda.hpp. What tests call is at the end.
#include "cuda.hpp"

#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <sys/mman.h>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define SWITCHING(...) __sanitizer_start_switch_fiber(__VA_ARGS__)
#define SWITCHED(...) __sanitizer_finish_switch_fiber(__VA_ARGS__)
#else
#define SWITCHING(...) (void)0
#define SWITCHED(...) (void)0
#endif

static_assert(sizeof(void*) == 8 && __x86_64__, "the switch between fibers is written for x86-64");

namespace emulator {
namespace {

constexpr size_t STACK_BYTES = 128 * 1024;
constexpr unsigned THREADS_MAX = 1024;
// As much as the largest devices give a block.
constexpr size_t SHARED_BYTES_MAX = 227 * 1024;

enum class State { ready, at_block, at_warp, done };

struct Copy { void* to; const void* from; };

struct Fiber {
  void* stack_pointer;
  void* fake_stack;
  State state;
  dim3 thread;
  bool has_waited;
  uint32_t mask;
  Operation operation;
  uint32_t said[WORDS];
  // Copies that are under way, the newest group last.
  std::vector<std::vector<Copy>> copies;
};

struct Runner {
  Thunk thunk;
  void** arguments;
  std::vector<Fiber> fibers;
  std::vector<void*> stacks;
  // What the lanes of a warp said when they last met.
  std::vector<uint32_t> heard;
  Fiber* current;
  void* scheduler_pointer;
  void* scheduler_fake;
  const void* scheduler_stack;
  size_t scheduler_stack_bytes;
  // Asynchronous copies are made at once, not when they are waited for.
  bool copies_at_once;
};

thread_local Runner runner;

extern "C" void emulator_switch(void** save, void* to);
asm(R"(
.text
.globl emulator_switch
.type emulator_switch, @function
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");

[[noreturn]] void die(const char* why) {
  fprintf(stderr, "emulated device: %s (block %u,%u,%u thread %u)\n", why, place.block.x, place.block.y, place.block.z,
          place.thread.x);
  abort();
}

void to_scheduler() {
  Fiber* self = runner.current;
  SWITCHING(self->state == State::done ? nullptr : &self->fake_stack, runner.scheduler_stack, runner.scheduler_stack_bytes);
  emulator_switch(&self->stack_pointer, runner.scheduler_pointer);
  SWITCHED(self->fake_stack, &runner.scheduler_stack, &runner.scheduler_stack_bytes);
  place.thread = self->thread;
}

void entry() {
  SWITCHED(nullptr, &runner.scheduler_stack, &runner.scheduler_stack_bytes);
  runner.thunk(runner.arguments);
  if (!runner.current->has_waited) die("a thread has ended without wait_for_inputs");
  runner.current->state = State::done;
  to_scheduler();
  abort();
}

void resume(Fiber& fiber, void* stack) {
  runner.current = &fiber;
  place.thread = fiber.thread;
  SWITCHING(&runner.scheduler_fake, stack, STACK_BYTES);
  emulator_switch(&runner.scheduler_pointer, fiber.stack_pointer);
  SWITCHED(runner.scheduler_fake, nullptr, nullptr);
}

// Lets the lanes of `mask` go on if all of them that still run have come.
bool release(unsigned warp, uint32_t mask) {
  unsigned first = warp * 32, count = runner.fibers.size() - first < 32 ? runner.fibers.size() - first : 32;
  Operation operation{};
  bool any = false;
  for (unsigned lane = 0; lane < count; ++lane) {
    Fiber& f = runner.fibers[first + lane];
    if (!(mask >> lane & 1) || f.state == State::done) continue;
    if (f.state != State::at_warp || f.mask != mask) return false;
    if (any && f.operation != operation) die("lanes of a warp meet in different operations");
    operation = f.operation;
    any = true;
  }
  for (unsigned lane = 0; lane < count; ++lane) {
    Fiber& f = runner.fibers[first + lane];
    if (!(mask >> lane & 1) || f.state != State::at_warp) continue;
    memcpy(&runner.heard[(first + lane) * WORDS], f.said, sizeof f.said);
    f.state = State::ready;
  }
  return any;
}

void run_block(const std::vector<unsigned>& order) {
  unsigned count = order.size();
  for (unsigned t = 0; t < count; ++t) {
    Fiber& f = runner.fibers[t];
    f.thread = {t, 0, 0};
    f.state = State::ready;
    f.has_waited = false;
    void** top = reinterpret_cast<void**>(static_cast<char*>(runner.stacks[t]) + STACK_BYTES - 64);
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    f.stack_pointer = top;
    f.fake_stack = nullptr;
    f.copies.assign(1, {});
  }
  for (;;) {
    bool moved = false;
    unsigned done = 0, at_block = 0;
    for (unsigned t : order) {
      if (runner.fibers[t].state != State::ready) continue;
      resume(runner.fibers[t], runner.stacks[t]);
      moved = true;
    }
    for (Fiber& f : runner.fibers) {
      done += f.state == State::done;
      at_block += f.state == State::at_block;
    }
    if (done == count) return;
    if (done + at_block == count) {
      for (Fiber& f : runner.fibers) {
        if (f.state == State::at_block) f.state = State::ready;
      }
      continue;
    }
    // Lanes may wait for others that have ended meanwhile.
    for (unsigned t = 0; t < count; ++t) {
      if (runner.fibers[t].state == State::at_warp) moved |= release(t / 32, runner.fibers[t].mask);
    }
    if (!moved) die("threads wait at barriers that others never reach");
  }
}

struct Kernel { Thunk thunk; const size_t* sizes; };

std::map<std::string, Kernel>& kernels() {
  static std::map<std::string, Kernel> all;
  return all;
}

}  // namespace

thread_local Place place;

int lane() { return place.thread.x & 31; }

void wait_for_inputs() { runner.current->has_waited = true; }

void sync_block() {
  runner.current->state = State::at_block;
  to_scheduler();
}

void meet(uint32_t mask, Operation operation, const void* words, size_t bytes, int source, void* from) {
  Fiber& self = *runner.current;
  unsigned thread = self.thread.x;
  if (!(mask >> (thread & 31) & 1)) die("a lane is not in its own mask");
  if (!(mask >> source & 1)) die("a lane listens to one that is not in the mask");
  memcpy(self.said, words, bytes);
  self.mask = mask;
  self.operation = operation;
  self.state = State::at_warp;
  if (!release(thread / 32, mask)) to_scheduler();
  memcpy(from, &runner.heard[((thread & ~31u) + source) * WORDS], bytes);
}

const uint32_t* meet_all(Operation operation, const void* words, size_t bytes) {
  uint32_t own[WORDS];
  meet(0xffffffffu, operation, words, bytes, lane(), own);
  return &runner.heard[(runner.current->thread.x & ~31u) * WORDS];
}

void copy_later(void* to, const void* from) {
  if (reinterpret_cast<uintptr_t>(to) % 16 || reinterpret_cast<uintptr_t>(from) % 16) die("an asynchronous copy is not aligned");
  if (runner.copies_at_once) {
    memcpy(to, from, 16);
  } else {
    runner.current->copies.back().push_back({to, from});
  }
}

void copy_commit() { runner.current->copies.emplace_back(); }

void copy_wait(size_t later) {
  auto& groups = runner.current->copies;
  // The last one has not been committed yet.
  while (groups.size() > later + 1) {
    for (Copy copy : groups.front()) memcpy(copy.to, copy.from, 16);
    groups.erase(groups.begin());
  }
}

Registration::Registration(const char* name, Thunk thunk, const size_t* sizes) { kernels()[name] = {thunk, sizes}; }

}  // namespace emulator

using namespace emulator;

extern "C" {

// 0: done; 1: there is no such kernel; 2: no device would launch this. `seed` chooses the order of threads.
__attribute__((visibility("default"))) int emulator_launch(const char* name, const unsigned* grid, unsigned threads, size_t shared_bytes, void** arguments, uint64_t seed) {
  auto found = kernels().find(name);
  if (found == kernels().end()) return 1;
  if (threads == 0 || threads > THREADS_MAX || shared_bytes > SHARED_BYTES_MAX) return 2;
  if (grid[0] == 0 || grid[1] == 0 || grid[2] == 0 || grid[1] > 65535 || grid[2] > 65535) return 2;
  runner.thunk = found->second.thunk;
  runner.arguments = arguments;
  runner.fibers.resize(threads);
  runner.heard.resize((threads + 31) / 32 * 32 * WORDS);
  while (runner.stacks.size() < threads) {
    runner.stacks.push_back(mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (runner.stacks.back() == MAP_FAILED) die("no memory for stacks");
  }
  std::vector<unsigned> order(threads);
  for (unsigned t = 0; t < threads; ++t) order[t] = t;
  uint64_t state = seed;
  runner.copies_at_once = seed & 1;
  for (unsigned t = threads; seed != 0 && t > 1; --t) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    std::swap(order[t - 1], order[(state >> 33) % t]);
  }
  // Exactly as long as was asked for, so that the sanitizer sees the end. It begins as garbage, as on a device.
  void* shared = shared_bytes == 0 ? nullptr : aligned_alloc(16, (shared_bytes + 15) / 16 * 16);
  for (unsigned z = 0; z < grid[2]; ++z) {
    for (unsigned y = 0; y < grid[1]; ++y) {
      for (unsigned x = 0; x < grid[0]; ++x) {
        if (shared) memset(shared, 0xff, shared_bytes);
        place = {{}, {x, y, z}, {threads, 1, 1}, {grid[0], grid[1], grid[2]}, shared};
        run_block(order);
      }
    }
  }
  free(shared);
  return 0;
}

// Sizes of a kernel's arguments, a zero at the end; null when there is no such kernel.
__attribute__((visibility("default"))) const size_t* emulator_sizes(const char* name) {
  auto found = kernels().find(name);
  return found == kernels().end() ? nullptr : found->second.sizes;
}

// Memory of the emulated device; it begins as garbage: numbers that are none.
__attribute__((visibility("default"))) uint64_t emulator_alloc(size_t bytes) {
  void* at = aligned_alloc(256, (bytes + 255) / 256 * 256);
  if (at) memset(at, 0xff, (bytes + 255) / 256 * 256);
#if defined(__SANITIZE_ADDRESS__)
  // Sizes are rounded up for the alignment; what is beyond the size is not the caller's.
  if (at) ASAN_POISON_MEMORY_REGION(static_cast<char*>(at) + bytes, (bytes + 255) / 256 * 256 - bytes);
#endif
  return reinterpret_cast<uint64_t>(at);
}

__attribute__((visibility("default"))) void emulator_free(uint64_t at, size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(reinterpret_cast<void*>(at), (bytes + 255) / 256 * 256);
#else
  (void)bytes;
#endif
  free(reinterpret_cast<void*>(at));
}

__attribute__((visibility("default"))) void emulator_copy(uint64_t to, uint64_t from, size_t bytes) {
  memcpy(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes);
}
}
