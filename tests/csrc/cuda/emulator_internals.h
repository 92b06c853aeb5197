// What the emulator's two files share: threads, blocks and clusters as they wait.
#pragma once
#include <ucontext.h>

#include <cstddef>
#include <memory>
#include <random>
#include <vector>

#include "emulator.h"

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
namespace emulator {

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

extern Fiber* current;
extern std::uint64_t progress;  // counts what lets others go on

inline void acquire([[maybe_unused]] const void* p) {
#if defined(SENET_EMULATE_TSAN)
  __tsan_acquire(const_cast<void*>(p));
#endif
}
inline void release([[maybe_unused]] const void* p) {
#if defined(SENET_EMULATE_TSAN)
  __tsan_release(const_cast<void*>(p));
#endif
}

void to_scheduler();

// A thread arrives at a barrier of `live`, and waits until the generation that it arrived in is over.
void arrive(Barrier& barrier, unsigned live, const char* file, int line);
void leave_generation(Barrier& barrier, unsigned generation, const char* file, int line);

// Copies and stores to other blocks take as long as they like: any of them may land.
std::size_t copies_on_their_way();
void land(std::size_t copy);
void end_copies();  // of a launch
void check_nothing_is_on_its_way_to(const Block& block);

}  // namespace emulator
