// The team of one call (se/cpu/team.h), of torch's threads.
#pragma once
#include <ATen/Parallel.h>
#if defined(_OPENMP)
#include <omp.h>
#endif

#include <algorithm>

#include "se/cpu/team.h"

namespace senet::bindings {

// One parallel region a call: its threads meet at barriers, which at::parallel_for has not. Always of all threads, of which
// the last may have nothing to do: libgomp ends and starts threads where the number changes from region to region.
inline constexpr auto run_team = [](std::int64_t threads, const auto& body) {
#if defined(_OPENMP)
  if (threads > 1 && !at::in_parallel_region()) {
#pragma omp parallel
    {
      const auto barrier = [](void*) {
#pragma omp barrier
      };
      body(Member{omp_get_thread_num(), std::min<std::int64_t>(threads, omp_get_num_threads()), barrier, nullptr});
    }
    return;
  }
#endif
  body(Member{});
};

}  // namespace senet::bindings
