#include "se/cuda/cluster_forward.cuh"

#include "se/cuda/instances.cuh"

namespace senet::cuda {
namespace {

template <class T, class W, bool kGeneral, int kImages>
SENET_KERNEL(kThreadsOfWide, 1)
cluster_forward_kernel(SENET_LAUNCH ClusterForwardLaunch launch) {
#if SENET_HAS_CLUSTERS
  SENET_DYNAMIC_SHARED(shared);
  ClusterForward<T, W, kGeneral, kImages>::run(launch, shared);
#endif
}

struct Instances {
  template <class T, class W, bool kGeneral, int kImages>
  static const void* instance() {
    return address_of(&cluster_forward_kernel<T, W, kGeneral, kImages>);
  }
};

}  // namespace

const void* cluster_kernel(const ForwardParams& p, int images) {
  return kernel_of<ClusterKernels<Instances>>(p, is_general(p), images);
}

}  // namespace senet::cuda
