// What the two files for torch share.
#pragma once
#include <c10/core/Allocator.h>
#include <c10/core/Device.h>

#include "device.h"

namespace stand_in {

constexpr auto kCuda = c10::DeviceType::CUDA;
c10::Allocator& allocator();
inline c10::Device device_at(int index) { return {kCuda, static_cast<c10::DeviceIndex>(index)}; }

}  // namespace stand_in
