// What the planner must know of the machine.
#pragma once
#include <cstdint>

namespace senet {

struct Machine {
  std::int64_t threads = 1;
  std::int64_t near_bytes = 1 << 20;  // what the threads together keep close to them: their L2
  // what they share that is about as fast, 0 where the L3 is not; then reads also run beside writes
  std::int64_t shared_bytes = 0;
  // from here on y and grad_x go past the caches
  std::int64_t stream_forward_bytes = 1 << 20, stream_backward_bytes = 1 << 20;
};

Machine machine_of(std::int64_t threads);  // this machine, with so many threads of it

bool has_f16c();  // whether an x86-64 converts half floats: clang's __builtin_cpu_supports knows it only from version 19 on

// Whether the processor multiplies tiles of bfloat16 and the system lets this process, which it asks for all of its threads.
bool may_use_amx();

}  // namespace senet
