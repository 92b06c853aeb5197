// The CUDA runtime as the cluster kernels' launchers use it.
#pragma once
#include <array>
#include <map>
#include <mutex>
#include <type_traits>

#include "se/cuda/cluster_plan.h"
#include "se/cuda/runtime.cuh"

namespace senet::cuda {

// Of a block, at most, of kernels that take more registers on sm_120; active_clusters() sees it.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
constexpr int kThreadsOfWide = kClusterThreads / 2;
#else
constexpr int kThreadsOfWide = kClusterThreads;
#endif

struct ClusterConfig : cudaLaunchConfig_t {
  cudaLaunchAttribute attribute{};

  ClusterConfig(const ClusterPlan& plan, int blocks, void* stream) : cudaLaunchConfig_t{} {
    gridDim = dim3(blocks);
    blockDim = dim3(plan.threads);
    dynamicSmemBytes = static_cast<std::size_t>(plan.shared_bytes);
    this->stream = static_cast<cudaStream_t>(stream);
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {static_cast<unsigned>(plan.size), 1, 1};
    attrs = &attribute;
    numAttrs = 1;
  }
  ClusterConfig(const ClusterConfig&) = delete;
};

// Clusters of the plan's that are resident at the same time; 0 where the GPU or the kernel has none.
// What the kernel is allowed here, it is when it is launched.
inline int active_clusters(const void* kernel, const ClusterPlan& plan, const Gpu& gpu) {
  int clusters = 0;
  cudaFuncAttributes attributes{};
  const ClusterConfig config(plan, plan.size, nullptr);
  const bool known =
      cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess && plan.threads <= attributes.maxThreadsPerBlock &&
      (plan.size <= 8 || cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) == cudaSuccess) &&
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, gpu.shared_bytes) == cudaSuccess &&
      cudaOccupancyMaxActiveClusters(&clusters, kernel, &config) == cudaSuccess;
  if (known) return clusters;
  cudaGetLastError();  // an answer, not an error to leave behind
  return 0;
}

// Whether the current device has clusters, and the kernel was compiled for a GPU that has: for an older one it is empty.
inline bool has_clusters(const void* kernel) {
  int device = 0, clusters = 0;
  cudaFuncAttributes attributes{};
  const bool known = cudaGetDevice(&device) == cudaSuccess &&
                     cudaDeviceGetAttribute(&clusters, cudaDevAttrClusterLaunch, device) == cudaSuccess && clusters &&
                     cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess;
  if (!known) cudaGetLastError();
  return known && attributes.ptxVersion >= 90;
}

// Instances::instance<T, W, kGeneral, kImages>() is a kernel's address; there is none for float64.
template <class Instances>
struct ClusterKernels {
  template <class T, class W>
  static const void* of(bool general, int images) {
    if constexpr (std::is_same_v<T, double>) {
      return nullptr;
    } else {
      return general       ? Instances::template instance<T, W, true, 1>()
             : images == 1 ? Instances::template instance<T, W, false, 1>()
                           : Instances::template instance<T, W, false, kClusterImages>();
    }
  }
};

template <class Instances, class P>
const void* cluster_kernel(const P& p, int images) {
  return kernel_of<ClusterKernels<Instances>>(p, is_general(p), images);
}

// choose() for the current device: asked of the driver once for each kind of call.
template <class Instances, class P>
ClusterPlan choose_here(const P& p, const Gpu& gpu, Kernel wanted, const Plan& ticket) {
  const bool backward = std::is_same_v<P, BackwardParams>, several_images = !is_general(p);
  const auto kernel = [&](int images) { return cluster_kernel<Instances>(p, images); };
  if (wanted == Kernel::ticket || p.dtype == Dtype::f64 || p.shape.B == 0) return {};
  int device = 0;
  cudaGetDevice(&device);
  using Key = std::array<std::int64_t, 14>;
  const auto& [B, O, K, I, R] = p.shape;
  const Key key{device,
                B,
                O,
                K,
                I,
                R,
                std::int64_t(p.dtype),
                std::int64_t(p.weight_dtype),
                std::int64_t(p.excitation),
                p.epilogue.residual != nullptr,
                !p.epilogue.activation.is_identity(),
                several_images,
                std::int64_t(wanted),
                std::int64_t(reinterpret_cast<std::uintptr_t>(kernel(1)))};
  static std::mutex mutex;
  static auto& known = *new std::map<Key, ClusterPlan>;  // never freed: a stream may outlive us
  const std::lock_guard lock(mutex);
  if (const auto found = known.find(key); found != known.end()) return found->second;
  if (known.size() > 10000) known.clear();  // of batches of every size
  ClusterPlan plan;
  if (has_clusters(kernel(1))) {
    plan = choose(
        p, backward, gpu, wanted, several_images,
        [&](const ClusterPlan& candidate) { return active_clusters(kernel(candidate.images), candidate, gpu); }, ticket);
  }
  return known[key] = plan;
}

template <class Launch>
const char* enqueue_clusters(const void* kernel, const ClusterPlan& plan, Launch launch, void* stream) {
  void* arguments[] = {&launch};
  const ClusterConfig config(plan, plan.clusters * plan.size, stream);
  return text_of(cudaLaunchKernelExC(&config, kernel, arguments));
}

}  // namespace senet::cuda
