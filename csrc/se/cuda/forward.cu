#include "se/cuda/forward.cuh"

#include "se/cuda/launch.h"
#include "se/cuda/runtime.cuh"

namespace senet::cuda {
namespace {

// Blocks a processor: as many as leave each thread the registers it needs.
template <class T, bool kGeneral>
constexpr int kResident = kGeneral || sizeof(T) != 4 ? 2 : 3;

template <class T, class W, bool kGeneral>
__global__ void __launch_bounds__(kThreads, kResident<T, kGeneral>)
    forward_kernel(const __grid_constant__ ForwardLaunch launch) {
  __shared__ typename Forward<T, W, kGeneral>::template Shared<kThreads> shared;
  Forward<T, W, kGeneral>::run(launch, shared);
}

// ---- launchers ----

struct Kernels {
  template <class T, class W>
  static const void* of(bool general) {
    return reinterpret_cast<const void*>(general ? &forward_kernel<T, W, true> : &forward_kernel<T, W, false>);
  }
};

}  // namespace

const char* plan_forward(const ForwardParams& p, Plan& out) {
  Gpu gpu;
  const char* error = gpu_of(kernel_of<Kernels>(p, is_general(p)), gpu);
  if (!error) out = plan(p.shape, p.dtype, gpu);
  return error;
}

std::int64_t forward_scratch(const ForwardParams& p, const Plan& plan) {
  Scratch scratch(nullptr, p.dtype);
  launch_of(p, plan, nullptr, scratch);
  return scratch.bytes();
}

const char* forward(const ForwardParams& p, const Plan& plan, void* scratch, unsigned* counters, void* stream) {
  Scratch taken(scratch, p.dtype);
  return enqueue(kernel_of<Kernels>(p, is_general(p)), launch_of(p, plan, counters, taken), plan.blocks, stream);
}

}  // namespace senet::cuda
