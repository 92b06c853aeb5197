#include "se/cuda/forward.cuh"

#include "se/cuda/cluster_launch.cuh"
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

const char* plan_forward(const ForwardParams& p, Kernel wanted, Plans& out) {
  Gpu gpu;
  const char* error = gpu_of(kernel_of<Kernels>(p, is_general(p)), gpu);
  if (error) return error;
  out.ticket = plan(p.shape, p.dtype, gpu);
  out.cluster = choose_cluster(p, gpu, wanted, out.ticket);
  return nullptr;
}

std::int64_t forward_scratch(const ForwardParams& p, const Plans& plans) {
  if (plans.cluster) return 0;
  Scratch scratch(nullptr, p.dtype);
  launch_of(p, plans.ticket, nullptr, scratch);
  return scratch.bytes();
}

const char* forward(const ForwardParams& p, const Plans& plans, void* scratch, unsigned* counters, void* stream) {
  if (plans.cluster) return cluster_forward(p, plans.cluster, stream);
  Scratch taken(scratch, p.dtype);
  return enqueue(kernel_of<Kernels>(p, is_general(p)), launch_of(p, plans.ticket, counters, taken), plans.ticket.blocks,
                 stream);
}

}  // namespace senet::cuda
