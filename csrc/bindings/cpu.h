#pragma once
#include <cstdint>

namespace senet::bindings {

std::int64_t cache_bytes();  // what the threads in use keep close: what the planner cuts for

}  // namespace senet::bindings
