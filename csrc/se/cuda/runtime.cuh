// The CUDA runtime as the launchers use it.
#pragma once
#include <cuda_runtime.h>

#include "se/cuda/plan.h"
#include "se/cuda/port.cuh"

namespace senet::cuda {

// null, or the runtime's words; the error is not left behind for the next call
inline const char* text_of(cudaError_t error) {
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();
  return cudaGetErrorString(error);
}

// The current device, for a kernel of kThreads threads without dynamic shared memory.
inline const char* gpu_of(const void* kernel, Gpu& gpu) {
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

template <class Launch>
const char* enqueue(const void* kernel, Launch launch, int blocks, void* stream) {
  void* arguments[] = {&launch};
  return text_of(cudaLaunchKernel(kernel, dim3(blocks), dim3(kThreads), arguments, 0, static_cast<cudaStream_t>(stream)));
}

}  // namespace senet::cuda
