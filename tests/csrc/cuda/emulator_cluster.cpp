// The emulator's clusters: their barrier, barriers that count bytes, copies and stores that land some time. Compiled like
// emulator.cpp.
#include <unordered_map>
#include <vector>

#include "emulator_internals.h"

namespace emulator {

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

// On its way: from memory, or bytes of its own.
struct Copy {
  unsigned char* to;
  const void* from;
  unsigned bytes;
  std::uint64_t* barrier;
  std::uint64_t own[2];
};
std::vector<Copy> copies;
std::unordered_map<const void*, void*> couriers;  // by barrier: who lands copies there, for the thread sanitizer

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

}  // namespace

std::size_t copies_on_their_way() { return copies.size(); }

void end_copies() {
  if (!copies.empty()) fail("the kernel has ended before its copies");
#if defined(SENET_EMULATE_TSAN)
  for (const auto& [barrier, courier] : couriers) __tsan_destroy_fiber(courier);
  couriers.clear();
#endif
}

void check_nothing_is_on_its_way_to(const Block& block) {
  for (const Copy& copy : copies) {
    if (copy.to >= block.shared.get() && copy.to < block.shared.get() + block.shared_bytes) {
      fail("a block leaves while something is on its way to it");
    }
  }
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

namespace {

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

}  // namespace emulator
