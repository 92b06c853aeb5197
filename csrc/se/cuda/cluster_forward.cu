#include "se/cuda/cluster_forward.cuh"

#include "se/cuda/instances.cuh"

namespace senet::cuda {
namespace {

template <class T, class W, bool kGeneral, int kImages>
__global__ void __launch_bounds__(kImages > 1 ? kThreadsOfWide : kClusterThreads, 1)
    cluster_forward_kernel(const __grid_constant__ ClusterForwardLaunch launch) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) unsigned char shared[];
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
