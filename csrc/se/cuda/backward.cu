#include "se/cuda/backward.cuh"

#include "se/cuda/instances.cuh"

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
    return address_of(&backward_kernel<T, W, kGeneral>);
  }
};

}  // namespace

const void* ticket_kernel(const BackwardParams& p) { return kernel_of<TicketKernels<Instances>>(p, is_general(p)); }

}  // namespace senet::cuda
