// What the kernels ask of the machine that is not plain CUDA C++. tests/csrc/cuda/emulator.h is the other machine: there the
// same kernels run on the host.
#pragma once
#include <cstdint>

#if !defined(__CUDACC__)
#include "emulator.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define SENET_DEVICE __device__ __forceinline__
#define SENET_DEVICE_CALL static __device__ __noinline__
#define SENET_HOST_DEVICE __host__ __device__
// SENET_KERNEL(bounds of a launch) name(SENET_LAUNCH Launch launch) { SENET_SHARED(name, Type); ... }
#define SENET_KERNEL(...) __global__ void __launch_bounds__(__VA_ARGS__)
#define SENET_LAUNCH const __grid_constant__
#define SENET_SHARED(name, ...) __shared__ __VA_ARGS__ name
#define SENET_DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#define SENET_HAS_CLUSTERS (__CUDA_ARCH__ >= 900)

namespace senet::cuda {

// What cudaLaunchKernelExC() and others know a kernel by.
template <class Launch>
const void* address_of(void (*kernel)(Launch)) {
  return reinterpret_cast<const void*>(kernel);
}

using f16 = __half;
using bf16 = __nv_bfloat16;

SENET_DEVICE float widen(f16 v) { return __half2float(v); }
SENET_DEVICE float widen(bf16 v) { return __bfloat162float(v); }
SENET_DEVICE void narrow(float v, f16& out) { out = __float2half_rn(v); }
SENET_DEVICE void narrow(float v, bf16& out) { out = __float2bfloat16_rn(v); }

// For what is read for the last time.
template <class V>
SENET_DEVICE V load_streaming(const V* p) {
  static_assert(sizeof(V) == 16);
  const uint4 bits = __ldcs(reinterpret_cast<const uint4*>(p));
  return *reinterpret_cast<const V*>(&bits);
}
template <class V>
SENET_DEVICE V load_vector(const V* p) {
  static_assert(sizeof(V) == 16);
  const uint4 bits = *reinterpret_cast<const uint4*>(p);
  return *reinterpret_cast<const V*>(&bits);
}
template <class V>
SENET_DEVICE void store_vector(V* p, V v) {
  static_assert(sizeof(V) == 16);
  *reinterpret_cast<uint4*>(p) = *reinterpret_cast<const uint4*>(&v);
}

// Where the compiler must have loaded a vector at the latest. No instruction.
template <class V>
SENET_DEVICE void landed(V& v) {
  static_assert(sizeof(V) == 16);
  uint4 bits = *reinterpret_cast<const uint4*>(&v);
  asm volatile("" : "+r"(bits.x), "+r"(bits.y), "+r"(bits.z), "+r"(bits.w));
  v = *reinterpret_cast<const V*>(&bits);
}

// ---- counters in global memory; each orders the memory accesses of the whole GPU as its name says ----

SENET_DEVICE unsigned add_relaxed(unsigned* p, unsigned v) { return atomicAdd(p, v); }
SENET_DEVICE unsigned add_acquire_release(unsigned* p, unsigned v) {
  unsigned old;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;"
               : "=r"(old)
               : "l"(__cvta_generic_to_global(p)), "r"(v)
               : "memory");
  return old;
}
SENET_DEVICE void add_release(unsigned* p, unsigned v) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(__cvta_generic_to_global(p)), "r"(v) : "memory");
}
SENET_DEVICE unsigned load_acquire(const unsigned* p) {
  unsigned v;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(__cvta_generic_to_global(p)) : "memory");
  return v;
}
SENET_DEVICE void pause() { __nanosleep(40); }

// ---- clusters, from sm_90 on: blocks that may write into each other's shared memory ----

SENET_DEVICE unsigned shared_address(const void* p) { return static_cast<unsigned>(__cvta_generic_to_shared(p)); }
SENET_DEVICE unsigned peer_address(const void* p, unsigned rank) {
  unsigned address;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(p)), "r"(rank));
  return address;
}
SENET_DEVICE unsigned cluster_rank() {
  unsigned rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
// The cluster's barrier, in two steps: all of its threads arrive, and later wait. It orders no memory but what
// publish_barriers() says, which spares a fence of the whole GPU's memory.
SENET_DEVICE void cluster_arrive() { asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"); }
SENET_DEVICE void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// A barrier in shared memory that is passed once its one arrival, expect(), is there and the bytes it named have landed. It can
// be used again and again: its phases have parity 0, 1, 0, ...
using Barrier = std::uint64_t;

SENET_DEVICE void init_barrier(Barrier* barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory");
}
// By the thread that has initialised barriers: copies and other blocks of the cluster may count on them.
SENET_DEVICE void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
SENET_DEVICE void expect(Barrier* barrier, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
}
// Until the phase of this parity is over. What landed through copies of this block is visible then.
SENET_DEVICE void wait(const Barrier* barrier, unsigned parity) {
  unsigned over;
  do {
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}"
        : "=r"(over)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  } while (!over);
}
// The same for what peers have pushed.
SENET_DEVICE void wait_for_peers(const Barrier* barrier, unsigned parity) {
  unsigned over;
  do {
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}"
        : "=r"(over)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  } while (!over);
}
// v lands at the same place in the shared memory of block `rank` of the cluster, and its barrier counts the bytes.
template <class V>
SENET_DEVICE void push(V* to, unsigned rank, Barrier* barrier, const V& v) {
  static_assert(sizeof(V) == 16);
  const uint4 bits = *reinterpret_cast<const uint4*>(&v);
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
                   peer_address(to, rank)),
               "r"(bits.x), "r"(bits.y), "r"(bits.z), "r"(bits.w), "r"(peer_address(barrier, rank))
               : "memory");
}
// A bulk copy, of a multiple of 16 bytes between boundaries of 16, that one barrier counts.
SENET_DEVICE void copy_to_shared(void* to, const void* from, unsigned bytes, Barrier* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_address(to)),
      "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}
// By a thread that has written where a copy will land, before the barrier of the block that lets the copy go.
SENET_DEVICE void before_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

}  // namespace senet::cuda
#endif
