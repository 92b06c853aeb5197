// From the types and options of a call to the instance of a kernel's template, for the .cu files.
#pragma once
#include <type_traits>

#include "se/cuda/cluster_plan.h"
#include "se/cuda/kernels.h"
#include "se/cuda/port.cuh"

namespace senet::cuda {

// Of a block of the cluster kernels, at most: they take more registers on sm_120. active_clusters() sees it.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
constexpr int kThreadsOfWide = kClusterThreads / 2;
#else
constexpr int kThreadsOfWide = kClusterThreads;
#endif

// Kernels::of<T, W>(variant...) for the types of p
template <class Kernels, class... Variant>
const void* kernel_of(const Params& p, Variant... variant) {
  const bool wide = p.weight_dtype == Dtype::f32;
  switch (p.dtype) {
    case Dtype::f32:
      return Kernels::template of<float, float>(variant...);
    case Dtype::f64:
      return wide ? Kernels::template of<double, float>(variant...) : Kernels::template of<double, double>(variant...);
    case Dtype::bf16:
      return wide ? Kernels::template of<bf16, float>(variant...) : Kernels::template of<bf16, bf16>(variant...);
    case Dtype::f16:
      return wide ? Kernels::template of<f16, float>(variant...) : Kernels::template of<f16, f16>(variant...);
  }
  return nullptr;
}

// Instances::instance<T, W, kGeneral>() is a ticket kernel's address.
template <class Instances>
struct TicketKernels {
  template <class T, class W>
  static const void* of(bool general) {
    return general ? Instances::template instance<T, W, true>() : Instances::template instance<T, W, false>();
  }
};

// Instances::instance<T, W, kGeneral, kImages>() is a cluster kernel's address; there is none for float64.
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

}  // namespace senet::cuda
