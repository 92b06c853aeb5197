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

namespace senet::cuda {

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

}  // namespace senet::cuda
#endif
