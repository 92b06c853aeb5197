// Compiled without -fsanitize=thread, but with SENET_EMULATE_TSAN where the rest has it: the bookkeeping is not under test.
#include "emulator.h"

#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#if defined(SENET_EMULATE_TSAN)
extern "C" {
void* __tsan_create_fiber(unsigned);
void __tsan_destroy_fiber(void*);
void __tsan_switch_to_fiber(void*, unsigned);
void* __tsan_get_current_fiber();
void __tsan_acquire(void*);
void __tsan_release(void*);
unsigned __tsan_atomic32_load(const volatile unsigned*, int);
unsigned __tsan_atomic32_fetch_add(volatile unsigned*, unsigned, int);
}
#endif
#if defined(__SANITIZE_ADDRESS__)
extern "C" {
void __sanitizer_start_switch_fiber(void**, const void*, std::size_t);
void __sanitizer_finish_switch_fiber(void*, const void**, std::size_t*);
}
#endif

namespace emulator {
namespace {

constexpr std::size_t kStack = 128 << 10;

struct Block;

struct Barrier {
  unsigned generation = 0, arrived = 0;
  const char* file = nullptr;
  int line = 0;
};

struct Warp {
  Barrier barrier;
  std::uint64_t slots[2][32];  // two, so that one meeting is enough: nobody is two exchanges ahead
  unsigned live = 0;
};

struct Fiber : Thread {
  ucontext_t context;
  Block* block_of = nullptr;
  bool done = false;
  const Barrier* waits_for = nullptr;  // to leave this generation
  unsigned generation = 0, exchanges = 0;
  const char* file = "its start";
  int line = 0;
  void *sanitizer = nullptr, *fake_stack = nullptr;
  std::unique_ptr<char[]> stack;

  bool can_run() const { return !done && !(waits_for && waits_for->generation == generation); }
};

struct Block {
  Barrier barrier;
  unsigned live = 0;
  std::unique_ptr<unsigned char[], void (*)(void*)> shared{nullptr, std::free};
  std::vector<Warp> warps;
  std::vector<std::unique_ptr<Fiber>> fibers;
};

ucontext_t scheduler;
Fiber* current = nullptr;
const std::function<void(void*)>* body = nullptr;
char everything;  // stands for all memory at the beginning and the end of a launch
std::uint64_t progress = 0;
std::vector<std::unique_ptr<Fiber>> spare;
[[maybe_unused]] void *scheduler_sanitizer = nullptr, *scheduler_fake_stack = nullptr;
[[maybe_unused]] const void* scheduler_stack = nullptr;
[[maybe_unused]] std::size_t scheduler_stack_size = 0;

void acquire([[maybe_unused]] const void* p) {
#if defined(SENET_EMULATE_TSAN)
  __tsan_acquire(const_cast<void*>(p));
#endif
}
void release([[maybe_unused]] const void* p) {
#if defined(SENET_EMULATE_TSAN)
  __tsan_release(const_cast<void*>(p));
#endif
}

void to_scheduler() {
  Fiber* fiber = current;
#if defined(SENET_EMULATE_TSAN)
  __tsan_switch_to_fiber(scheduler_sanitizer, 1);  // 1: the switch orders nothing
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(fiber->done ? nullptr : &fiber->fake_stack, scheduler_stack, scheduler_stack_size);
#endif
  swapcontext(&fiber->context, &scheduler);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fiber->fake_stack, &scheduler_stack, &scheduler_stack_size);
#endif
}

void resume(Fiber& fiber) {
  current = &fiber;
  self = &fiber;
#if defined(SENET_EMULATE_TSAN)
  __tsan_switch_to_fiber(fiber.sanitizer, 1);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&scheduler_fake_stack, fiber.stack.get(), kStack);
#endif
  swapcontext(&scheduler, &fiber.context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
#endif
  current = nullptr;
}

void open(Barrier& barrier) {
  barrier.arrived = 0;
  ++barrier.generation;
  ++progress;
}

void meet(Barrier& barrier, unsigned live, const char* file, int line) {
  if (barrier.arrived == 0) {
    barrier.file = file;
    barrier.line = line;
  } else if (barrier.line != line || std::strcmp(barrier.file, file) != 0) {
    std::fprintf(stderr, "others wait at %s:%d, this one at %s:%d\n", barrier.file, barrier.line, file, line);
    fail("threads meet at different barriers");
  }
  Fiber* fiber = current;
  fiber->file = file;
  fiber->line = line;
  fiber->generation = barrier.generation;
  release(&barrier);
  if (++barrier.arrived >= live) open(barrier);
  fiber->waits_for = &barrier;
  while (!fiber->can_run()) to_scheduler();
  fiber->waits_for = nullptr;
  acquire(&barrier);
}

void leave(Barrier& barrier, unsigned& live) {
  --live;
  if (barrier.arrived > 0 && barrier.arrived >= live) open(barrier);
}

void run_fiber() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_size);
#endif
  acquire(&everything);
  (*body)(current->block_of->shared.get());
  release(&everything);
  Fiber* fiber = current;
  Block& block = *fiber->block_of;
  Warp& warp = block.warps[fiber->thread.x / 32];
  fiber->done = true;
  leave(warp.barrier, warp.live);
  leave(block.barrier, block.live);
  ++progress;
  to_scheduler();
}

std::unique_ptr<Block> start_block(unsigned index, std::size_t shared_bytes) {
  auto block = std::make_unique<Block>();
  const unsigned threads = block_size.x;
  block->live = threads;
  void* shared = nullptr;
  if (posix_memalign(&shared, 128, shared_bytes) != 0) fail("no memory");
  std::memset(shared, 0xff, shared_bytes);
  block->shared.reset(static_cast<unsigned char*>(shared));
  block->warps.resize(threads / 32);
  for (unsigned t = 0; t < threads; ++t) {
    std::unique_ptr<Fiber> fiber;
    if (spare.empty()) {
      fiber = std::make_unique<Fiber>();
      fiber->stack.reset(new char[kStack]);
    } else {
      fiber = std::move(spare.back());
      spare.pop_back();
      auto stack = std::move(fiber->stack);
      *fiber = Fiber();
      fiber->stack = std::move(stack);
    }
    fiber->thread = {t};
    fiber->block = {index};
    fiber->block_of = block.get();
    ++block->warps[t / 32].live;
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = fiber->stack.get();
    fiber->context.uc_stack.ss_size = kStack;
    fiber->context.uc_link = nullptr;
    makecontext(&fiber->context, run_fiber, 0);
#if defined(SENET_EMULATE_TSAN)
    fiber->sanitizer = __tsan_create_fiber(0);
#endif
    block->fibers.push_back(std::move(fiber));
  }
  return block;
}

void end_block(Block& block) {
  for (auto& fiber : block.fibers) {
#if defined(SENET_EMULATE_TSAN)
    __tsan_destroy_fiber(fiber->sanitizer);
#endif
    spare.push_back(std::move(fiber));
  }
}

[[noreturn]] void fail_without_progress(const std::vector<std::unique_ptr<Block>>& blocks) {
  for (const auto& block : blocks) {
    for (const auto& fiber : block->fibers) {
      if (fiber->done || fiber->thread.x % 32 != 0) continue;
      std::fprintf(stderr, "  block %u thread %u waits at %s:%d\n", fiber->block.x, fiber->thread.x, fiber->file, fiber->line);
    }
  }
  current = nullptr;
  fail("deadlock: no thread can go on");
}

}  // namespace

Thread* self;
Dim3 block_size, grid_size;

void fail(const char* what) {
  std::fprintf(stderr, "emulator: %s", what);
  if (current) {
    std::fprintf(stderr, " (block %u, thread %u, last at %s:%d)", current->block.x, current->thread.x, current->file,
                 current->line);
  }
  std::fprintf(stderr, "\n");
  _exit(86);
}

void block_barrier(const char* file, int line) {
  Block& block = *current->block_of;
  meet(block.barrier, block.live, file, line);
}

std::uint64_t exchange(std::uint64_t value, unsigned lane, const char* file, int line) {
  Fiber* fiber = current;
  Warp& warp = fiber->block_of->warps[fiber->thread.x / 32];
  std::uint64_t* slots = warp.slots[fiber->exchanges++ % 2];
  slots[fiber->thread.x % 32] = value;
  meet(warp.barrier, warp.live, file, line);
  return slots[lane % 32];
}

void spin() {
  current->file = "a counter, since";
  to_scheduler();
}

#if defined(SENET_EMULATE_TSAN)  // atomics in the sanitizer's eyes, of the order asked for
unsigned add(unsigned* p, unsigned v, bool acquire, bool release) {
  ++progress;
  return __tsan_atomic32_fetch_add(p, v,
                                   acquire   ? release ? __ATOMIC_ACQ_REL : __ATOMIC_ACQUIRE
                                   : release ? __ATOMIC_RELEASE
                                             : __ATOMIC_RELAXED);
}
unsigned load_acquire(const unsigned* p) { return __tsan_atomic32_load(p, __ATOMIC_ACQUIRE); }
#else
unsigned add(unsigned* p, unsigned v, bool, bool) {
  ++progress;
  const unsigned old = *p;
  *p += v;
  return old;
}
unsigned load_acquire(const unsigned* p) { return *p; }
#endif

void launch(unsigned blocks, unsigned threads, std::size_t shared_bytes, const Options& options,
            const std::function<void(void*)>& kernel) {
  if (threads == 0 || threads % 32 != 0) fail("a block is whole warps");
  block_size = {threads};
  grid_size = {blocks};
  body = &kernel;
  std::mt19937 random(options.seed);
#if defined(SENET_EMULATE_TSAN)
  scheduler_sanitizer = __tsan_get_current_fiber();
#endif
  release(&everything);
  std::vector<std::unique_ptr<Block>> live;
  std::vector<Fiber*> ready;
  unsigned next = 0;
  for (int idle = 0; next < blocks || !live.empty();) {
    while (next < blocks && static_cast<int>(live.size()) < options.resident) live.push_back(start_block(next++, shared_bytes));
    ready.clear();
    for (const auto& block : live) {
      for (const auto& fiber : block->fibers) {
        if (fiber->can_run()) ready.push_back(fiber.get());
      }
    }
    const std::uint64_t before = progress;
    // some of them, in any order: who is left out is late
    std::shuffle(ready.begin(), ready.end(), random);
    const std::size_t some = ready.empty() ? 0 : 1 + random() % ready.size();
    for (std::size_t i = 0; i < some; ++i) {
      if (ready[i]->can_run()) resume(*ready[i]);
    }
    idle = progress == before ? idle + 1 : 0;
    if (ready.empty() || idle > 2000) fail_without_progress(live);
    for (std::size_t i = 0; i < live.size();) {
      if (live[i]->live > 0) {
        ++i;
        continue;
      }
      acquire(&everything);
      end_block(*live[i]);
      live.erase(live.begin() + static_cast<std::ptrdiff_t>(i));
    }
  }
  acquire(&everything);
}

}  // namespace emulator
