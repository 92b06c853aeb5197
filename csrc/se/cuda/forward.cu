#include "se/cuda/forward.cuh"

#include "se/cuda/instances.cuh"

namespace senet::cuda {
namespace {

template <class T, class W, bool kGeneral>
SENET_KERNEL(kThreads, kResident)
forward_kernel(SENET_LAUNCH ForwardLaunch launch) {
  SENET_SHARED(shared, typename Forward<T, W, kGeneral>::template Shared<kThreads>);
  Forward<T, W, kGeneral>::run(launch, shared);
}

struct Instances {
  template <class T, class W, bool kGeneral>
  static const void* instance() {
    return address_of(&forward_kernel<T, W, kGeneral>);
  }
};

}  // namespace

const void* ticket_kernel(const ForwardParams& p) { return kernel_of<TicketKernels<Instances>>(p, is_general(p)); }

}  // namespace senet::cuda
