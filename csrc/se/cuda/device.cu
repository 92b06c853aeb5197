#include "se/cuda/device.h"

#include <cuda_runtime.h>

#include "se/cuda/launch.h"

namespace senet::cuda {

Device device() {
  Device d{0, 0, 0};
  cudaRuntimeGetVersion(&d.runtime);
  if (cudaDriverGetVersion(&d.driver) != cudaSuccess || cudaGetDeviceCount(&d.count) != cudaSuccess) d.count = 0;
  cudaGetLastError();  // having no driver is an answer, not an error to leave behind
  return d;
}

bool is_capturing(void* stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status);
  return status != cudaStreamCaptureStatusNone;
}

}  // namespace senet::cuda
