// What a call on the CPU takes from torch and the system: a team of threads, and pages for a large output.
#pragma once
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdlib>
#include <string_view>

#include "se/cpu/team.h"
#include "system.h"

#if defined(SENET_FAST_OPENMP)
// What gcc makes of OpenMP's pragmas. clang makes calls into its own runtime of them, and that would be a second one in the
// process, with threads of its own beside those of torch.
extern "C" {
void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned flags);
void GOMP_barrier();
int omp_get_thread_num();
int omp_get_num_threads();
}
#endif

namespace senet::bindings {

// One parallel region a call: its threads meet at barriers, which at::parallel_for has not. Always of all threads, of which
// the last may have nothing to do: libgomp ends and starts threads where the number changes from region to region.
inline constexpr auto run_team = [](std::int64_t threads, const auto& body) {
#if defined(SENET_FAST_OPENMP)
  if (threads > 1 && !at::in_parallel_region()) {
    struct Shared {
      std::int64_t threads;
      decltype(body) run;
    } shared{threads, body};
    const auto member = [](void* data) noexcept {
      const Shared& given = *static_cast<Shared*>(data);
      const std::int64_t count = std::min<std::int64_t>(given.threads, omp_get_num_threads());
      given.run(Member{omp_get_thread_num(), count, [](void*) { GOMP_barrier(); }, nullptr});
    };
    GOMP_parallel(member, &shared, 0, 0);  // 0: as many as torch has set
    return;
  }
#endif
  body(Member{});
};

// Fresh pages of a large output cost more than the op itself: ask for huge ones on the aligned inside of our own tensor
// (glibc maps blocks above 32 MB anew each time, and gives smaller ones back with the end of its heap). Nothing changes but
// the time; SENET_FAST_HUGE_PAGES=0 leaves it.
inline void advise_huge_pages(const at::Tensor& t) {
  constexpr std::size_t kPage = 2 << 20, kLeast = 16 << 20;
  static const bool wanted = [] {
    const char* text = std::getenv("SENET_FAST_HUGE_PAGES");
    return text == nullptr || std::string_view(text) != "0";
  }();
  if (!wanted || t.nbytes() <= kLeast) return;
  const auto begin = reinterpret_cast<std::uintptr_t>(t.mutable_data_ptr());
  const std::uintptr_t first = (begin + kPage - 1) / kPage * kPage, last = (begin + t.nbytes()) / kPage * kPage;
  system::prefer_huge_pages(reinterpret_cast<void*>(first), last - first);
}

}  // namespace senet::bindings
