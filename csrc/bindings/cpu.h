#pragma once
#include <cstdint>
#include <optional>

#include "se/cpu/plan.h"
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

}  // namespace senet::bindings
