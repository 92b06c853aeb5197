// The dispatcher: which kernels a call runs, with what, and the launches themselves. Host code only.
#include "se/cuda/launch.h"

#include <cuda_runtime.h>

#include <array>
#include <map>
#include <mutex>
#include <type_traits>

#include "se/cuda/backward.cuh"
#include "se/cuda/cluster_backward.cuh"
#include "se/cuda/cluster_forward.cuh"
#include "se/cuda/counters.h"
#include "se/cuda/forward.cuh"
#include "se/cuda/kernels.h"

namespace senet::cuda {
namespace {

template <class P>
constexpr bool kBackward = std::is_same_v<P, BackwardParams>;

// null, or the runtime's words; the error is not left behind for the next call
const char* text_of(cudaError_t error) {
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();
  return cudaGetErrorString(error);
}

// The current device, for a kernel of kThreads threads without dynamic shared memory.
const char* gpu_of(const void* kernel, Gpu& gpu) {
  int device, l2_bytes;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&gpu.processors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&l2_bytes, cudaDevAttrL2CacheSize, device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&gpu.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  }
  if (error == cudaSuccess) {
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&gpu.blocks_per_processor, kernel, kThreads, 0);
  }
  if (error == cudaSuccess) gpu.l2_bytes = l2_bytes;
  return text_of(error);
}

struct Grid : cudaLaunchConfig_t {
  cudaLaunchAttribute attribute{};

  explicit Grid(int blocks, int threads = kThreads) : cudaLaunchConfig_t{} {
    gridDim = dim3(blocks);
    blockDim = dim3(threads);
  }
  Grid(const ClusterPlan& plan, int clusters) : Grid(clusters * plan.size, plan.threads) {
    dynamicSmemBytes = static_cast<std::size_t>(plan.shared_bytes);
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {static_cast<unsigned>(plan.size), 1, 1};
    attrs = &attribute;
    numAttrs = 1;
  }
  Grid(const Grid&) = delete;
};

// Questions to the driver. An error may be the answer, that the GPU or the kernel cannot do it; any other says nothing of them,
// and the next call asks again.
class Questions {
 public:
  bool yes(cudaError_t said) {
    if (said == cudaSuccess) return true;
    cudaGetLastError();  // not an error to leave behind
    switch (said) {
      case cudaErrorInvalidValue:
      case cudaErrorInvalidConfiguration:
      case cudaErrorInvalidDeviceFunction:
      case cudaErrorNoKernelImageForDevice:
      case cudaErrorLaunchOutOfResources:
      case cudaErrorNotSupported:
      case cudaErrorInvalidClusterSize:
        break;
      default:
        answered_ = false;
    }
    return false;
  }
  bool answered() const { return answered_; }

 private:
  bool answered_ = true;
};

// Clusters of the plan's that are resident at the same time; 0 where the GPU or the kernel has none.
// What the kernel is allowed here, it is when it is launched.
int active_clusters(const void* kernel, const ClusterPlan& plan, const Gpu& gpu, Questions& ask) {
  int clusters = 0;
  cudaFuncAttributes attributes{};
  const Grid grid(plan, 1);
  const bool possible =
      ask.yes(cudaFuncGetAttributes(&attributes, kernel)) && plan.threads <= attributes.maxThreadsPerBlock &&
      (plan.size <= 8 || ask.yes(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1))) &&
      ask.yes(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, gpu.shared_bytes)) &&
      ask.yes(cudaOccupancyMaxActiveClusters(&clusters, kernel, &grid));
  return possible ? clusters : 0;
}

// Whether the device has clusters, and the kernel was compiled for a GPU that has: for an older one it is empty.
bool has_clusters(const void* kernel, int device, Questions& ask) {
  int clusters = 0;
  cudaFuncAttributes attributes{};
  return kernel && ask.yes(cudaDeviceGetAttribute(&clusters, cudaDevAttrClusterLaunch, device)) && clusters &&
         ask.yes(cudaFuncGetAttributes(&attributes, kernel)) && attributes.ptxVersion >= 90;
}

// choose() for the current device: asked of the driver once for each kind of call, if it answers.
template <class P>
ClusterPlan choose_here(const P& p, const Gpu& gpu, Kernel wanted, const Plan& ticket) {
  const bool several_images = !is_general(p);
  Questions ask;
  int device = 0;
  if (!ask.yes(cudaGetDevice(&device))) return {};
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
                std::int64_t(reinterpret_cast<std::uintptr_t>(cluster_kernel(p, 1)))};
  static std::mutex mutex;
  static auto& known = *new std::map<Key, ClusterPlan>;  // never freed: a stream may outlive us
  const std::lock_guard lock(mutex);
  if (const auto found = known.find(key); found != known.end()) return found->second;
  if (known.size() > 10000) known.clear();  // of batches of every size
  ClusterPlan plan;
  if (has_clusters(cluster_kernel(p, 1), device, ask)) {
    const auto active = [&](const ClusterPlan& one) { return active_clusters(cluster_kernel(p, one.images), one, gpu, ask); };
    plan = choose(p, kBackward<P>, gpu, wanted, several_images, active, ticket);
  }
  if (ask.answered()) known[key] = plan;
  return plan;
}

// enqueue(kernel, launch, grid) for each launch of the call, in order; what it returns, if that is not null, ends it.
template <class P, class Enqueue>
const char* for_launches(const P& p, const Plans& plans, Scratch& scratch, unsigned* counters, const Enqueue& enqueue) {
  if (!plans.cluster) {
    return enqueue(ticket_kernel(p), launch_of(p, plans.ticket, counters, scratch), Grid(plans.ticket.blocks));
  }
  const auto launch = launch_of(p, plans.cluster, scratch);
  const char* error = enqueue(cluster_kernel(p, plans.cluster.images), launch, Grid(plans.cluster, plans.cluster.clusters));
  if constexpr (kBackward<P>) {
    if (const int jobs = weight_jobs(p, kThreads); jobs > 0 && !error)
      error = enqueue(weight_gradients_kernel(p), launch, Grid(jobs));
  }
  return error;
}

template <class P>
const char* plan_call(const P& p, Kernel wanted, Plans& plans) {
  Gpu gpu;
  if (const char* error = gpu_of(ticket_kernel(p), gpu)) return error;
  plans.ticket = plan(p, kBackward<P>, gpu);
  plans.cluster = choose_here(p, gpu, wanted, plans.ticket);
  Scratch counted(nullptr, p.dtype);
  for_launches(p, plans, counted, nullptr, [](auto&&...) -> const char* { return nullptr; });
  plans.scratch_bytes = counted.bytes();
  return nullptr;
}

template <class P>
const char* launch_call(const P& p, const Plans& plans, void* scratch, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  unsigned* counters = nullptr;
  if (!plans.cluster) {
    if (const cudaError_t error = counters_for(on, counters_of(p.shape.B), counters)) return text_of(error);
  }
  Scratch taken(scratch, p.dtype);
  const char* error = for_launches(p, plans, taken, counters, [&](const void* kernel, auto launch, Grid&& grid) {
    grid.stream = on;
    void* arguments[] = {&launch};
    return text_of(cudaLaunchKernelExC(&grid, kernel, arguments));
  });
  if (error && counters) distrust_counters(on);
  return error;
}

}  // namespace

const char* make_plans(const ForwardParams& p, Kernel wanted, Plans& plans) { return plan_call(p, wanted, plans); }
const char* make_plans(const BackwardParams& p, Kernel wanted, Plans& plans) { return plan_call(p, wanted, plans); }

const char* launch(const ForwardParams& p, const Plans& plans, void* scratch, void* stream) {
  return launch_call(p, plans, scratch, stream);
}
const char* launch(const BackwardParams& p, const Plans& plans, void* scratch, void* stream) {
  return launch_call(p, plans, scratch, stream);
}

}  // namespace senet::cuda
