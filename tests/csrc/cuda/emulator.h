// Runs the GPU's kernels on the host, from the same source: the other side of csrc/se/cuda/port.cuh. Every thread of a block is
// a fiber, and one thread of the host runs them in a seeded random order, so that a run can be repeated.
//
// It tests indices, barriers, tickets, clusters and what orders memory, with the number of resident clusters as a parameter (a
// block alone is a cluster of one). Rules are checked: all threads meet at the same barrier, 16-byte accesses are aligned,
// shared memory starts as NaNs, and when nobody can go on it prints where everybody waits. Asynchronous copies and stores turn
// their destination to NaNs at once and land any time later; a third of a cluster's blocks start as late as they can; nobody
// reaches into a block that has not started or is gone. With -fsanitize=thread each thread of the GPU is one of the sanitizer's
// fibers; barriers and counters order what they order on the GPU and nothing else does, so it reports races between threads of
// the GPU. With -fsanitize=address it reports accesses outside of tensors and of shared memory.
//
// It knows nothing of time, registers, occupancy, bank conflicts, instructions, or memory orders weaker than the sanitizer's.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <source_location>

namespace emulator {

struct Dim3 {
  unsigned x;
};
struct Thread {
  Dim3 thread, block;
};
extern Thread* self;
extern Dim3 block_size, grid_size;
extern unsigned cluster_size;
inline const Dim3& thread_index() { return self->thread; }
inline const Dim3& block_index() { return self->block; }
inline const Dim3& size_of_block() { return block_size; }
inline const Dim3& size_of_grid() { return grid_size; }

struct Options {
  unsigned seed = 1;
  int resident = 4;      // clusters that run at the same time
  unsigned cluster = 1;  // blocks of a cluster
};
// kernel(shared memory) on every thread. Ends the program, with a reason, where a rule is broken or nobody can go on.
void launch(unsigned blocks, unsigned threads, std::size_t shared_bytes, const Options& options,
            const std::function<void(void*)>& kernel);

// Kernels by their addresses, for who launches them so: what a launch copies, and how to run one of its threads.
struct Kernel {
  std::size_t launch_bytes;
  void (*clear_padding)(void* launch);  // what is left in it is the launch's own
  std::function<void(const void* launch)> run;
};
void know(const void* address, const Kernel& kernel);
const Kernel* kernel_at(const void* address);  // null: there is none
// The running block's shared memory, from its beginning; `bytes` of it are wanted.
void* shared_memory(std::size_t bytes);

[[noreturn]] void fail(const char* what);
void block_barrier(const char* file, int line);
std::uint64_t exchange(std::uint64_t value, unsigned lane, const char* file, int line);  // within the warp
unsigned add(unsigned* p, unsigned v, bool acquire, bool release);
unsigned load_acquire(const unsigned* p);
void spin();  // lets others run

using Where = std::source_location;
void cluster_arrive(Where where);
void cluster_wait(Where where);
void init_barrier(std::uint64_t* barrier);
void expect(std::uint64_t* barrier, unsigned bytes);
void wait(const std::uint64_t* barrier, unsigned parity, Where where);
// The same place in another block's shared memory, where `bytes` of p land and count on a barrier.
void push(void* to, unsigned rank, std::uint64_t* barrier, const void* p, unsigned bytes);
void copy_to_shared(void* to, const void* from, unsigned bytes, std::uint64_t* barrier);

template <class T>
T shuffle(T v, unsigned lane, const char* file, int line) {
  std::uint64_t bits = 0;
  std::memcpy(&bits, &v, sizeof v);
  bits = exchange(bits, lane, file, line);
  std::memcpy(&v, &bits, sizeof v);
  return v;
}

template <class V>
void check_aligned(const V* p) {
  static_assert(sizeof(V) == 16);
  if (reinterpret_cast<std::uintptr_t>(p) % 16 != 0) fail("a 16-byte access that is not aligned");
}

}  // namespace emulator

#define SENET_DEVICE inline
#define SENET_DEVICE_CALL inline
#define SENET_HOST_DEVICE
#define SENET_KERNEL(...) void
#define SENET_LAUNCH const
#define SENET_SHARED(name, ...) auto& name = *static_cast<__VA_ARGS__*>(emulator::shared_memory(sizeof(__VA_ARGS__)))
#define SENET_DYNAMIC_SHARED(name) auto* name = static_cast<unsigned char*>(emulator::shared_memory(0))
#define SENET_HAS_CLUSTERS 1
#define __syncthreads() emulator::block_barrier(__FILE__, __LINE__)
#define __shfl_xor_sync(mask, v, offset) emulator::shuffle(v, threadIdx.x % 32 ^ (offset), __FILE__, __LINE__)
#define __umulhi(a, b) static_cast<unsigned>(std::uint64_t{a} * (b) >> 32)

namespace senet::cuda {

// CUDA's names. No macros: the host's code has members of these names.
template <const emulator::Dim3& (*kOf)()>
struct Index {
  struct {
    operator unsigned() const { return kOf().x; }
  } x;
};
inline constexpr Index<emulator::thread_index> threadIdx{};
inline constexpr Index<emulator::block_index> blockIdx{};
inline constexpr Index<emulator::size_of_block> blockDim{};
inline constexpr Index<emulator::size_of_grid> gridDim{};

// What stands for a kernel's address on the host; launch() of the stand-in finds it again.
template <class Launch>
const void* address_of(void (*kernel)(Launch)) {
  const auto* address = reinterpret_cast<const void*>(kernel);
  emulator::know(address, {sizeof(Launch), [](void* launch) { __builtin_clear_padding(static_cast<Launch*>(launch)); },
                           [kernel](const void* launch) { kernel(*static_cast<const Launch*>(launch)); }});
  return address;
}

struct f16 {
  _Float16 value;
};
struct bf16 {
  std::uint16_t bits;
};

inline float widen(f16 v) { return float(v.value); }
inline float widen(bf16 v) {
  const std::uint32_t bits = std::uint32_t{v.bits} << 16;
  float wide;
  std::memcpy(&wide, &bits, 4);
  return wide;
}
inline void narrow(float v, f16& out) { out.value = static_cast<_Float16>(v); }
inline void narrow(float v, bf16& out) {
  std::uint32_t bits;
  std::memcpy(&bits, &v, 4);
  out.bits = static_cast<std::uint16_t>(v != v ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

template <class V>
V load_vector(const V* p) {
  emulator::check_aligned(p);
  V v;
  std::memcpy(&v, p, sizeof v);  // what lies there may be of another type
  return v;
}
template <class V>
V load_streaming(const V* p) {
  return load_vector(p);
}
template <class V>
void store_vector(V* p, V v) {
  emulator::check_aligned(p);
  *p = v;
}

template <class V>
void landed(V&) {}

inline unsigned add_relaxed(unsigned* p, unsigned v) { return emulator::add(p, v, false, false); }
inline unsigned add_acquire_release(unsigned* p, unsigned v) { return emulator::add(p, v, true, true); }
inline void add_release(unsigned* p, unsigned v) { emulator::add(p, v, false, true); }
inline unsigned load_acquire(const unsigned* p) { return emulator::load_acquire(p); }
inline void pause() { emulator::spin(); }

using Barrier = std::uint64_t;
inline unsigned cluster_rank() { return blockIdx.x % emulator::cluster_size; }
inline void cluster_arrive(emulator::Where where = emulator::Where::current()) { emulator::cluster_arrive(where); }
inline void cluster_wait(emulator::Where where = emulator::Where::current()) { emulator::cluster_wait(where); }
inline void init_barrier(Barrier* barrier) { emulator::init_barrier(barrier); }
inline void publish_barriers() {}
inline void expect(Barrier* barrier, unsigned bytes) { emulator::expect(barrier, bytes); }
inline void wait(const Barrier* barrier, unsigned parity, emulator::Where where = emulator::Where::current()) {
  emulator::wait(barrier, parity, where);
}
inline void wait_for_peers(const Barrier* barrier, unsigned parity, emulator::Where where = emulator::Where::current()) {
  emulator::wait(barrier, parity, where);
}
template <class V>
void push(V* to, unsigned rank, Barrier* barrier, const V& v) {
  static_assert(sizeof(V) == 16);
  emulator::push(to, rank, barrier, &v, sizeof v);
}
inline void copy_to_shared(void* to, const void* from, unsigned bytes, Barrier* barrier) {
  emulator::copy_to_shared(to, from, bytes, barrier);
}
inline void before_copies() {}

}  // namespace senet::cuda
