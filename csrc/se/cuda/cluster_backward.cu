#include "se/cuda/cluster_backward.cuh"

#include "se/cuda/instances.cuh"

namespace senet::cuda {
namespace {

template <class T, class W, bool kGeneral, int kImages>
SENET_KERNEL(kThreadsOfWide, 1)
cluster_backward_kernel(SENET_LAUNCH ClusterBackwardLaunch launch) {
#if SENET_HAS_CLUSTERS
  SENET_DYNAMIC_SHARED(shared);
  ClusterBackward<T, W, kGeneral, kImages>::run(launch, shared);
#endif
}

template <class T, class W>
SENET_KERNEL(kThreads)
weights_kernel(SENET_LAUNCH ClusterBackwardLaunch launch) {
  using Warps = double[kThreads / 32];
  SENET_SHARED(warps, Warps);
  WeightGradients<T, W>{launch.call, launch.sums, launch.cut.images, warps}.run(blockIdx.x);
}

struct Instances {
  template <class T, class W, bool kGeneral, int kImages>
  static const void* instance() {
    return address_of(&cluster_backward_kernel<T, W, kGeneral, kImages>);
  }
};
struct WeightsKernels {
  template <class T, class W>
  static const void* of() {
    if constexpr (std::is_same_v<T, double>) {
      return nullptr;
    } else {
      return address_of(&weights_kernel<T, W>);
    }
  }
};

}  // namespace

const void* cluster_kernel(const BackwardParams& p, int images) {
  return kernel_of<ClusterKernels<Instances>>(p, is_general(p), images);
}

const void* weight_gradients_kernel(const BackwardParams& p) { return kernel_of<WeightsKernels>(p); }

}  // namespace senet::cuda
