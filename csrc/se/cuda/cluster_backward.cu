#include "se/cuda/cluster_backward.cuh"

#include "se/cuda/cluster_launch.cuh"
#include "se/cuda/cluster_runtime.cuh"

namespace senet::cuda {
namespace {

template <class T, class W, bool kGeneral, int kImages>
__global__ void __launch_bounds__(kThreadsOfWide, 1)
    cluster_backward_kernel(const __grid_constant__ ClusterBackwardLaunch launch) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) unsigned char shared[];
  ClusterBackward<T, W, kGeneral, kImages>::run(launch, shared);
#endif
}

template <class T, class W>
__global__ void __launch_bounds__(kThreads) weights_kernel(const __grid_constant__ ClusterBackwardLaunch launch) {
  __shared__ double warps[kThreads / 32];
  WeightGradients<T, W>{launch.call, launch.sums, launch.cut.images, warps}.run(blockIdx.x);
}

struct Instances {
  template <class T, class W, bool kGeneral, int kImages>
  static const void* instance() {
    return reinterpret_cast<const void*>(&cluster_backward_kernel<T, W, kGeneral, kImages>);
  }
};
struct WeightsKernels {
  template <class T, class W>
  static const void* of() {
    if constexpr (std::is_same_v<T, double>) {
      return nullptr;
    } else {
      return reinterpret_cast<const void*>(&weights_kernel<T, W>);
    }
  }
};

}  // namespace

ClusterPlan choose_cluster(const BackwardParams& p, const Gpu& gpu, Kernel wanted, const Plan& ticket) {
  return choose_here<Instances>(p, gpu, wanted, ticket);
}

std::int64_t cluster_scratch(const BackwardParams& p) {
  Scratch scratch(nullptr, p.dtype);
  weight_sums(p, scratch);
  return scratch.bytes();
}

const char* enqueue_cluster(const BackwardParams& p, const ClusterPlan& plan, void* scratch, void* stream) {
  Scratch taken(scratch, p.dtype);
  const ClusterBackwardLaunch launch = launch_of(p, plan, taken);
  const char* error = enqueue_clusters(cluster_kernel<Instances>(p, plan.images), plan, launch, stream);
  const int jobs = weight_jobs(p, kThreads);
  if (error || jobs == 0) return error;
  return enqueue(kernel_of<WeightsKernels>(p), launch, jobs, stream);
}

}  // namespace senet::cuda
