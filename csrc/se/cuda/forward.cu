#include "se/cuda/forward.cuh"

#include "se/cuda/ticket_runtime.cuh"

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

struct Instances {
  template <class T, class W, bool kGeneral>
  static const void* instance() {
    return reinterpret_cast<const void*>(&forward_kernel<T, W, kGeneral>);
  }
};

}  // namespace

const char* plan_forward(const ForwardParams& p, Kernel wanted, Plans& plans) { return plan_here<Instances>(p, wanted, plans); }

std::int64_t forward_scratch(const ForwardParams& p, const Plans& plans) { return scratch_bytes(p, plans); }

const char* forward(const ForwardParams& p, const Plans& plans, void* scratch, unsigned* counters, void* stream) {
  return enqueue_call<Instances>(p, plans, scratch, counters, stream);
}

}  // namespace senet::cuda
