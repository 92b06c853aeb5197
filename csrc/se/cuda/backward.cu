#include "se/cuda/backward.cuh"

#include "se/cuda/launch.h"
#include "se/cuda/runtime.cuh"

namespace senet::cuda {
namespace {

template <class T, class W, bool kGeneral>
__global__ void __launch_bounds__(kThreads, 2) backward_kernel(const __grid_constant__ BackwardLaunch launch) {
  __shared__ typename Backward<T, W, kGeneral>::template Shared<kThreads> shared;
  Backward<T, W, kGeneral>::run(launch, shared);
}

// ---- launchers ----

struct Kernels {
  template <class T, class W>
  static const void* of(bool general) {
    return reinterpret_cast<const void*>(general ? &backward_kernel<T, W, true> : &backward_kernel<T, W, false>);
  }
};

}  // namespace

const char* plan_backward(const BackwardParams& p, Plan& out) {
  Gpu gpu;
  const char* error = gpu_of(kernel_of<Kernels>(p, is_general(p)), gpu);
  if (!error) out = plan(p.shape, p.dtype, gpu);
  return error;
}

std::int64_t backward_scratch(const BackwardParams& p, const Plan& plan) {
  Scratch scratch(nullptr, p.dtype);
  launch_of(p, plan, nullptr, scratch, kThreads);
  return scratch.bytes();
}

const char* backward(const BackwardParams& p, const Plan& plan, void* scratch, unsigned* counters, void* stream) {
  Scratch taken(scratch, p.dtype);
  return enqueue(kernel_of<Kernels>(p, is_general(p)), launch_of(p, plan, counters, taken, kThreads), plan.blocks, stream);
}

}  // namespace senet::cuda
