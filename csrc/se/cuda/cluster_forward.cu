#include "se/cuda/cluster_forward.cuh"

#include "se/cuda/cluster_launch.cuh"
#include "se/cuda/cluster_runtime.cuh"

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

struct Kernels {
  template <class T, class W>
  static const void* of(bool general, int images) {
    if constexpr (std::is_same_v<T, double>) {
      return nullptr;
    } else {
      return reinterpret_cast<const void*>(general       ? &cluster_forward_kernel<T, W, true, 1>
                                           : images == 1 ? &cluster_forward_kernel<T, W, false, 1>
                                                         : &cluster_forward_kernel<T, W, false, kClusterImages>);
    }
  }
};

}  // namespace

ClusterPlan choose_cluster(const ForwardParams& p, const Gpu& gpu, Kernel wanted, const Plan& ticket) {
  const bool general = is_general(p);
  return choose_here(p, false, gpu, wanted, !general, ticket,
                     [&](int images) { return kernel_of<Kernels>(p, general, images); });
}

const char* cluster_forward(const ForwardParams& p, const ClusterPlan& plan, void* stream) {
  return enqueue_clusters(kernel_of<Kernels>(p, is_general(p), plan.images), plan, launch_of(p, plan), stream);
}

}  // namespace senet::cuda
