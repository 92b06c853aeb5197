#include "se/cuda/device.h"

#include <cuda_runtime.h>

namespace senet::cuda {

Device device() {
  Device d{0, 0, 0};
  cudaRuntimeGetVersion(&d.runtime);
  if (cudaDriverGetVersion(&d.driver) != cudaSuccess || cudaGetDeviceCount(&d.count) != cudaSuccess) d.count = 0;
  cudaGetLastError();  // having no driver is an answer, not an error to leave behind
  return d;
}

}  // namespace senet::cuda
