#include "se/cuda/backward.cuh"

#include "se/cuda/ticket_runtime.cuh"

namespace senet::cuda {
namespace {

template <class T, class W, bool kGeneral>
__global__ void __launch_bounds__(kThreads, 2) backward_kernel(const __grid_constant__ BackwardLaunch launch) {
  __shared__ typename Backward<T, W, kGeneral>::template Shared<kThreads> shared;
  Backward<T, W, kGeneral>::run(launch, shared);
}

struct Instances {
  template <class T, class W, bool kGeneral>
  static const void* instance() {
    return reinterpret_cast<const void*>(&backward_kernel<T, W, kGeneral>);
  }
};

}  // namespace

const char* plan_backward(const BackwardParams& p, Kernel wanted, Plans& plans) {
  return plan_here<Instances>(p, wanted, plans);
}

std::int64_t backward_scratch(const BackwardParams& p, const Plans& plans) { return scratch_bytes(p, plans); }

const char* backward(const BackwardParams& p, const Plans& plans, void* scratch, unsigned* counters, void* stream) {
  return enqueue_call<Instances>(p, plans, scratch, counters, stream);
}

}  // namespace senet::cuda
