// Compiled without -fsanitize=thread, but with SENET_EMULATE_TSAN where the rest has it: the bookkeeping is not under test.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "emulator_internals.h"

#if defined(__SANITIZE_ADDRESS__)
extern "C" {
void __sanitizer_start_switch_fiber(void**, const void*, std::size_t);
void __sanitizer_finish_switch_fiber(void*, const void**, std::size_t*);
}
#endif

namespace emulator {

Thread* self;
Dim3 block_size, grid_size;
unsigned cluster_size = 1;
Fiber* current = nullptr;
std::uint64_t progress = 0;

namespace {

ucontext_t scheduler;
const std::function<void(void*)>* body = nullptr;
char everything;  // stands for all memory at the beginning and the end of a launch
std::vector<std::unique_ptr<Fiber>> spare;
[[maybe_unused]] void *scheduler_sanitizer = nullptr, *scheduler_fake_stack = nullptr;
[[maybe_unused]] const void* scheduler_stack = nullptr;
[[maybe_unused]] std::size_t scheduler_stack_size = 0;

}  // namespace

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

namespace {

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

}  // namespace

void arrive(Barrier& barrier, unsigned live, const char* file, int line) {
  if (barrier.arrived == 0) {
    barrier.file = file;
    barrier.line = line;
  } else if (barrier.line != line || std::strcmp(barrier.file, file) != 0) {
    std::fprintf(stderr, "others wait at %s:%d, this one at %s:%d\n", barrier.file, barrier.line, file, line);
    fail("threads meet at different barriers");
  }
  release(&barrier);
  if (++barrier.arrived >= live) open(barrier);
}

void leave_generation(Barrier& barrier, unsigned generation, const char* file, int line) {
  Fiber* fiber = current;
  fiber->file = file;
  fiber->line = line;
  fiber->generation = generation;
  fiber->waits_for = &barrier;
  while (!fiber->can_run()) to_scheduler();
  fiber->waits_for = nullptr;
  acquire(&barrier);
}

namespace {

void meet(Barrier& barrier, unsigned live, const char* file, int line) {
  const unsigned generation = barrier.generation;
  arrive(barrier, live, file, line);
  leave_generation(barrier, generation, file, line);
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
  current->block_of->started = true;
  (*body)(current->block_of->shared.get());
  release(&everything);
  Fiber* fiber = current;
  Block& block = *fiber->block_of;
  Warp& warp = block.warps[fiber->thread.x / 32];
  if (fiber->arrived_in_cluster) fail("a thread that arrived in its cluster leaves without the wait");
  fiber->done = true;
  leave(warp.barrier, warp.live);
  leave(block.barrier, block.live);
  leave(block.cluster->barrier, block.cluster->live);
  if (block.live == 0) check_nothing_is_on_its_way_to(block);
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
  block->shared_bytes = shared_bytes;
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

std::unique_ptr<Cluster> start_cluster(unsigned index, std::size_t shared_bytes, std::mt19937& random) {
  auto cluster = std::make_unique<Cluster>();
  for (unsigned rank = 0; rank < cluster_size; ++rank) {
    cluster->blocks.push_back(start_block(index * cluster_size + rank, shared_bytes));
    Block& block = *cluster->blocks.back();
    block.cluster = cluster.get();
    block.late = cluster_size > 1 && random() % 3 == 0;
    cluster->live += block.live;
  }
  return cluster;
}

[[noreturn]] void fail_without_progress(const std::vector<Block*>& blocks) {
  for (const Block* block : blocks) {
    for (const auto& fiber : block->fibers) {
      if (fiber->done || fiber->thread.x % 32 != 0) continue;
      std::fprintf(stderr, "  block %u thread %u waits at %s:%d\n", fiber->block.x, fiber->thread.x, fiber->file, fiber->line);
    }
  }
  current = nullptr;
  fail("deadlock: no thread can go on");
}

}  // namespace

void fail(const char* what) {
  std::fprintf(stderr, "emulator: %s", what);
  if (current) {
    std::fprintf(stderr, " (block %u, thread %u, last at %s:%d)", current->block.x, current->thread.x, current->file,
                 current->line);
  }
  std::fprintf(stderr, "\n");
  _exit(86);
}

void* shared_memory(std::size_t bytes) {
  const Block& block = *current->block_of;
  if (bytes > block.shared_bytes) fail("the launch has less shared memory than the kernel");
  return block.shared.get();
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
  if (blocks % options.cluster != 0) fail("a grid is whole clusters");
  block_size = {threads};
  grid_size = {blocks};
  cluster_size = options.cluster;
  body = &kernel;
  std::mt19937 random(options.seed);
#if defined(SENET_EMULATE_TSAN)
  scheduler_sanitizer = __tsan_get_current_fiber();
#endif
  release(&everything);
  std::vector<std::unique_ptr<Cluster>> live;
  std::vector<Block*> running;
  std::vector<Fiber*> ready;
  const unsigned clusters = blocks / cluster_size;
  unsigned next = 0;
  for (int idle = 0; next < clusters || !live.empty();) {
    while (next < clusters && static_cast<int>(live.size()) < options.resident) {
      live.push_back(start_cluster(next++, shared_bytes, random));
    }
    ready.clear();
    running.clear();
    Block* late = nullptr;
    for (const auto& cluster : live) {
      for (const auto& block : cluster->blocks) {
        running.push_back(block.get());
        if (block->late) late = block.get();
        for (const auto& fiber : block->fibers) {
          if (!block->late && fiber->can_run()) ready.push_back(fiber.get());
        }
      }
    }
    const std::uint64_t before = progress;
    // some of them, in any order: who is left out is late
    std::shuffle(ready.begin(), ready.end(), random);
    const std::size_t some = ready.empty() ? 0 : 1 + random() % ready.size();
    for (std::size_t i = 0; i < some; ++i) {
      if (ready[i]->can_run()) resume(*ready[i]);
    }
    if (ready.empty() || idle > 20) {  // what is late or on its way may help
      if (late && (copies_on_their_way() == 0 || random() % 2)) {
        late->late = false;
        ++progress;
      } else if (copies_on_their_way() > 0) {
        land(random() % copies_on_their_way());
      } else if (ready.empty() || idle > 2000) {
        fail_without_progress(running);
      }
    } else if (copies_on_their_way() > 0 && random() % 8 == 0) {
      land(random() % copies_on_their_way());
    }
    idle = progress == before ? idle + 1 : 0;
    for (std::size_t i = 0; i < live.size();) {
      if (live[i]->live > 0) {
        ++i;
        continue;
      }
      acquire(&everything);
      for (const auto& block : live[i]->blocks) end_block(*block);
      live.erase(live.begin() + static_cast<std::ptrdiff_t>(i));
    }
  }
  end_copies();
  acquire(&everything);
}

}  // namespace emulator
