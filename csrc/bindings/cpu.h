#pragma once
#include <cstdint>
#include <optional>

#include "se/cpu/plan.h"

namespace senet::bindings {

Machine machine();  // what the planner cuts for: the threads in use and their caches

// Overrides the planner where a value is given: for measurements, and for tests that take every path on small inputs.
struct ForcedPlan {
  std::optional<std::int64_t> threads, images_per_tile;
  std::optional<bool> stream, overlap;
};
void force_plan(const ForcedPlan& forced);
Plan with_forced(Plan plan);

}  // namespace senet::bindings
