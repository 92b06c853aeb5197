#include "se/cuda/backward.cuh"

#include "se/cuda/instances.cuh"

namespace senet::cuda {
namespace {

template <class T, class W, bool kGeneral>
SENET_KERNEL(kThreads, kResident)
backward_kernel(SENET_LAUNCH BackwardLaunch launch) {
  SENET_SHARED(shared, typename Backward<T, W, kGeneral>::template Shared<kThreads>);
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
