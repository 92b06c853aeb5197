#include "se/cuda/backward.cuh"

#include "se/cuda/cluster_launch.cuh"
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

const char* plan_backward(const BackwardParams& p, Kernel wanted, Plans& out) {
  Gpu gpu;
  const char* error = gpu_of(kernel_of<Kernels>(p, is_general(p)), gpu);
  if (error) return error;
  out.ticket = plan(p.shape, p.dtype, gpu);
  out.cluster = choose_cluster(p, gpu, wanted, out.ticket);
  return nullptr;
}

std::int64_t backward_scratch(const BackwardParams& p, const Plans& plans) {
  if (plans.cluster) return cluster_backward_scratch(p);
  Scratch scratch(nullptr, p.dtype);
  launch_of(p, plans.ticket, nullptr, scratch, kThreads);
  return scratch.bytes();
}

const char* backward(const BackwardParams& p, const Plans& plans, void* scratch, unsigned* counters, void* stream) {
  if (plans.cluster) return cluster_backward(p, plans.cluster, scratch, stream);
  Scratch taken(scratch, p.dtype);
  return enqueue(kernel_of<Kernels>(p, is_general(p)), launch_of(p, plans.ticket, counters, taken, kThreads),
                 plans.ticket.blocks, stream);
}

}  // namespace senet::cuda
