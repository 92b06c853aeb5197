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

struct Instances {
  template <class T, class W, bool kGeneral, int kImages>
  static const void* instance() {
    return reinterpret_cast<const void*>(&cluster_forward_kernel<T, W, kGeneral, kImages>);
  }
};

}  // namespace

ClusterPlan choose_cluster(const ForwardParams& p, const Gpu& gpu, Kernel wanted, const Plan& ticket) {
  return choose_here<Instances>(p, gpu, wanted, ticket);
}

std::int64_t cluster_scratch(const ForwardParams&) { return 0; }

const char* enqueue_cluster(const ForwardParams& p, const ClusterPlan& plan, void*, void* stream) {
  return enqueue_clusters(cluster_kernel<Instances>(p, plan.images), plan, launch_of(p, plan), stream);
}

}  // namespace senet::cuda
