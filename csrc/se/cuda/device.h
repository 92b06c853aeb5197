// What the CUDA runtime says of this machine. No CUDA header here: the binding includes this.
#pragma once
#include "se/export.h"

namespace senet::cuda {

struct Device {
  int runtime;  // e.g. 13000; linked statically
  int driver;   // 0 without a driver
  int count;    // GPUs, 0 without a driver
};
SENET_EXPORT Device device();

}  // namespace senet::cuda
