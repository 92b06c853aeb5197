// Compiled without -fsanitize=thread, but with SENET_EMULATE_TSAN where the rest has it: the bookkeeping is not under test.
#include "emulator.h"

#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <unordered_map>
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
struct Cluster;

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
  const std::uint64_t* waits_for_bytes = nullptr;  // to leave the phase of this parity
  unsigned parity = 0;
  bool arrived_in_cluster = false;
  unsigned cluster_generation = 0;
  const char* file = "its start";
  int line = 0;
  void *sanitizer = nullptr, *fake_stack = nullptr;
  std::unique_ptr<char[]> stack;

  bool can_run() const {
    return !done && !(waits_for && waits_for->generation == generation) &&
           !(waits_for_bytes && *waits_for_bytes >> 63 == parity);
  }
};

struct Block {
  Cluster* cluster = nullptr;
  Barrier barrier;
  unsigned live = 0;
  bool started = false;
  bool late = false;  // starts when nobody else can go on
  std::size_t shared_bytes = 0;
  std::unique_ptr<unsigned char[], void (*)(void*)> shared{nullptr, std::free};
  std::vector<Warp> warps;
  std::vector<std::unique_ptr<Fiber>> fibers;
};

struct Cluster {
  Barrier barrier;
  unsigned live = 0;  // threads
  std::vector<std::unique_ptr<Block>> blocks;
};

// On its way: from memory, or bytes of its own.
struct Copy {
  unsigned char* to;
  const void* from;
  unsigned bytes;
  std::uint64_t* barrier;
  std::uint64_t own[2];
};

ucontext_t scheduler;
Fiber* current = nullptr;
const std::function<void(void*)>* body = nullptr;
char everything;  // stands for all memory at the beginning and the end of a launch
std::uint64_t progress = 0;
std::vector<std::unique_ptr<Fiber>> spare;
std::vector<Copy> copies;
std::unordered_map<const void*, void*> couriers;  // by barrier: who lands copies there, for the thread sanitizer
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
  if (block.live == 0) {
    for (const Copy& copy : copies) {
      if (copy.to >= block.shared.get() && copy.to < block.shared.get() + block.shared_bytes) {
        fail("a block leaves while something is on its way to it");
      }
    }
  }
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

Thread* self;
Dim3 block_size, grid_size;
unsigned cluster_size = 1;

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

void cluster_arrive(Where where) {
  Cluster& cluster = *current->block_of->cluster;
  if (current->arrived_in_cluster) fail("a thread arrives twice in its cluster without a wait");
  current->arrived_in_cluster = true;
  current->cluster_generation = cluster.barrier.generation;
  arrive(cluster.barrier, cluster.live, where.file_name(), static_cast<int>(where.line()));
}
void cluster_wait(Where where) {
  if (!current->arrived_in_cluster) fail("a thread waits for its cluster without having arrived");
  current->arrived_in_cluster = false;
  leave_generation(current->block_of->cluster->barrier, current->cluster_generation, where.file_name(),
                   static_cast<int>(where.line()));
}

// ---- barriers that count bytes: the word is phase (1 bit), initialised (1), arrivals pending (1), bytes (32, signed) ----

namespace {
constexpr std::uint64_t kPhase = std::uint64_t{1} << 63, kInitialised = std::uint64_t{0x2a} << 40, kPending = kPhase >> 1;

void update(std::uint64_t* barrier, bool arrives, int bytes) {
  std::uint64_t word = *barrier;
  if ((word & std::uint64_t{0xff} << 40) != kInitialised) fail("a barrier is used that nobody has initialised");
  if (arrives && !(word & kPending)) fail("a barrier has more arrivals than it counts");
  if (arrives) word &= ~kPending;
  const int due = static_cast<int>(static_cast<std::uint32_t>(word)) + bytes;
  word = (word >> 32 << 32) | static_cast<std::uint32_t>(due);
  if (due == 0 && !(word & kPending)) {
    word = (word ^ kPhase) | kPending;
    ++progress;
  }
  *barrier = word;
}

void land(std::size_t i) {
  const Copy copy = copies[i];
  copies[i] = copies.back();
  copies.pop_back();
#if defined(SENET_EMULATE_TSAN)  // one fiber for each barrier: it knows what those know who send there, and nothing else
  void*& courier = couriers[copy.barrier];
  if (!courier) courier = __tsan_create_fiber(0);
  void* before = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(courier, 1);
#endif
  acquire(copy.to);
  std::memcpy(copy.to, copy.from ? copy.from : copy.own, copy.bytes);
  release(copy.barrier);
#if defined(SENET_EMULATE_TSAN)
  __tsan_switch_to_fiber(before, 1);
#endif
  update(copy.barrier, false, -static_cast<int>(copy.bytes));
  ++progress;
}

template <class P>
P* in_shared(P* p, unsigned bytes, Block& of) {
  const auto at = reinterpret_cast<const unsigned char*>(p) - current->block_of->shared.get();
  if (at < 0 || at + bytes > static_cast<std::ptrdiff_t>(of.shared_bytes)) fail("not an address in shared memory");
  return reinterpret_cast<P*>(of.shared.get() + at);
}

void send(void* to, const void* from, const void* own, unsigned bytes, std::uint64_t* barrier) {
  std::memset(to, 0xff, bytes);
  release(to);
  if (copies.capacity() == 0) copies.reserve(1 << 16);
  if (copies.size() == copies.capacity()) fail("too much on its way");
  Copy copy{static_cast<unsigned char*>(to), from, bytes, barrier, {}};
  if (own) __builtin_memcpy(copy.own, own, sizeof copy.own);  // inlined: the sanitizer need not see it
  copies.push_back(copy);
}
}  // namespace

void init_barrier(std::uint64_t* barrier) { *in_shared(barrier, 8, *current->block_of) = kInitialised | kPending; }

void expect(std::uint64_t* barrier, unsigned bytes) {
  if (bytes >= 1u << 20) fail("a barrier counts fewer than 2^20 bytes");
  release(barrier);
  update(in_shared(barrier, 8, *current->block_of), true, static_cast<int>(bytes));
}

void wait(const std::uint64_t* barrier, unsigned parity, Where where) {
  Fiber* fiber = current;
  fiber->file = where.file_name();
  fiber->line = static_cast<int>(where.line());
  update(const_cast<std::uint64_t*>(in_shared(barrier, 8, *fiber->block_of)), false, 0);
  fiber->parity = parity;
  fiber->waits_for_bytes = barrier;
  while (!fiber->can_run()) to_scheduler();
  fiber->waits_for_bytes = nullptr;
  acquire(barrier);
}

void push(void* to, unsigned rank, std::uint64_t* barrier, const void* p, unsigned bytes) {
  if (bytes != 16 || reinterpret_cast<std::uintptr_t>(to) % 16 != 0) fail("a push is 16 bytes, and aligned");
  if (rank >= cluster_size) fail("a push to a block that is not in the cluster");
  Block& peer = *current->block_of->cluster->blocks[rank];
  if (!peer.started) fail("a push to a block that may not have started");
  if (peer.live == 0) fail("a push to a block that is gone");
  send(in_shared(to, bytes, peer), nullptr, p, bytes, in_shared(barrier, 8, peer));
}

void copy_to_shared(void* to, const void* from, unsigned bytes, std::uint64_t* barrier) {
  if ((reinterpret_cast<std::uintptr_t>(to) | reinterpret_cast<std::uintptr_t>(from) | bytes) % 16 != 0 || bytes == 0) {
    fail("a bulk copy that is empty or not aligned");
  }
  Block& block = *current->block_of;
  send(in_shared(to, bytes, block), from, nullptr, bytes, in_shared(barrier, 8, block));
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
      if (late && (copies.empty() || random() % 2)) {
        late->late = false;
        ++progress;
      } else if (!copies.empty()) {
        land(random() % copies.size());
      } else if (ready.empty() || idle > 2000) {
        fail_without_progress(running);
      }
    } else if (!copies.empty() && random() % 8 == 0) {
      land(random() % copies.size());
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
  if (!copies.empty()) fail("the kernel has ended before its copies");
#if defined(SENET_EMULATE_TSAN)
  for (const auto& [barrier, courier] : couriers) __tsan_destroy_fiber(courier);
  couriers.clear();
#endif
  acquire(&everything);
}

}  // namespace emulator
