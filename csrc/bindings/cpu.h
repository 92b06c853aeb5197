#pragma once
#include <cstdint>
#include <optional>

#include "se/cpu/conv_plan.h"
#include "se/export.h"

namespace senet::bindings {

SENET_EXPORT Machine machine();  // what the planner cuts for: the threads in use and their caches

// Overrides the planner where a value is given: for measurements, and for tests that take every path on small inputs.
struct ForcedPlan {
  std::optional<std::int64_t> threads, images_per_tile;
  std::optional<bool> stream, overlap;
};
SENET_EXPORT void force_plan(const ForcedPlan& forced);
SENET_EXPORT Plan with_forced(Plan plan);

// The same for a convolution with a gate: images squeezed together, pixels of a tile, and so on, as in ConvPlan.
struct ForcedConvPlan {
  std::optional<bool> fused, stream;
  std::optional<std::int64_t> threads, images, pixels, across, channels, tiles_a_pass;
};
SENET_EXPORT void force_plan_conv(const ForcedConvPlan& forced);

struct ConvRoute {
  const char* composed_because;  // null: fused, as `plan` says
  ConvPlan plan;
};
// prepared: whether the call brings what can be computed of the weights beforehand.
SENET_EXPORT ConvRoute route_conv(const ConvParams& p, bool prepared);

}  // namespace senet::bindings
