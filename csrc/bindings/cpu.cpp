// The ops on the CPU: outputs from torch's allocator, one team of threads, one call into drive.h.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <sys/mman.h>
#include <torch/library.h>
#include <unistd.h>
#if defined(_OPENMP)
#include <omp.h>
#endif

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <string_view>

#include "bindings/cpu.h"
#include "bindings/ops.h"
#include "bindings/run.h"
#include "se/cpu/drive.h"

namespace senet::bindings {
namespace {

// One parallel region a call: its threads meet at barriers, which at::parallel_for has not. Always of all threads, of which
// the last may have nothing to do: libgomp ends and starts threads where the number changes from region to region.
const auto run_team = [](std::int64_t threads, const auto& body) {
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

ForcedPlan forced_plan;

#if defined(_SC_LEVEL2_CACHE_SIZE)
std::int64_t cache_bytes(int name, std::int64_t otherwise) {
  const std::int64_t bytes = sysconf(name);
  return bytes > 0 ? bytes : otherwise;
}
#endif

// Fresh pages of a large output cost more than the op itself: ask for huge ones on the aligned inside of our own tensor
// (glibc maps blocks above 32 MB anew each time, and gives smaller ones back with the end of its heap). Nothing changes but
// the time; SENET_FAST_HUGE_PAGES=0 leaves it.
void advise_huge_pages([[maybe_unused]] const Tensor& t) {
#if defined(MADV_HUGEPAGE)
  constexpr std::size_t kPage = 2 << 20, kLeast = 16 << 20;
  static const bool wanted = [] {
    const char* text = std::getenv("SENET_FAST_HUGE_PAGES");
    return text == nullptr || std::string_view(text) != "0";
  }();
  if (!wanted || t.nbytes() <= kLeast) return;
  const auto begin = reinterpret_cast<std::uintptr_t>(t.mutable_data_ptr());
  const std::uintptr_t first = (begin + kPage - 1) / kPage * kPage, last = (begin + t.nbytes()) / kPage * kPage;
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // advice: a refusal changes nothing
#endif
}

struct Run {
  void operator()(const ForwardParams& given) const {
    ForwardParams p = given;
    std::unique_ptr<char[]> scratch;
    if (p.saved == nullptr) {
      const std::int64_t bytes = p.shape.B * p.saved_width() * (p.dtype == Dtype::f64 ? 8 : 4);
      scratch.reset(new char[static_cast<std::size_t>(bytes)]);
      p.saved = scratch.get();
    }
    forward(p, kernels(), with_forced(plan_forward(p, machine())), run_team);
  }
  void operator()(const BackwardParams& p) const { backward(p, kernels(), with_forced(plan_backward(p, machine())), run_team); }
  static void made(const Tensor& t) { advise_huge_pages(t); }
};

Tensor op_cpu(SENET_ARGUMENTS) {
  const Arguments a{SENET_PASS};
  check(a);
  return forward_new(a, nullptr, Run());
}

void into_cpu(SENET_INTO_ARGUMENTS) { forward_given({SENET_PASS}, pre_scale, pre_shift, pre_activation, out, Run()); }

std::tuple<Tensor, Tensor> forward_cpu(SENET_ARGUMENTS) {
  const Arguments a{SENET_PASS};
  check(a);
  Tensor saved = at::empty({x.size(0), saved_width(a).expect_int()}, x.options().dtype(accumulate_type(x)));
  return {forward_new(a, saved.mutable_data_ptr(), Run()), saved};
}

Gradients backward_cpu(const Tensor& grad_y, const Tensor& saved, Mask mask, SENET_ARGUMENTS) {
  const Arguments a{SENET_PASS};
  check(a);
  return gradients(grad_y, saved, mask, a, Run());
}

}  // namespace

// Near is the L2 of each thread in use: with a share of the L3 as well, three of four shapes were 1.15x to 1.4x slower.
// From where to stream: alone, both passes gain from right behind the L2 on where the L3 is as slow as Intel's servers'
// (AMD's is about as fast as the L2, and streaming lost 2x to 4x inside it). But the next layer reads y: with streaming from
// 4 MB on, a whole SE-ResNet-50 (bfloat16, 16 images) took 282 ms, from 64 MB on 231. What comes after backward gained and
// lost nothing.
Machine machine() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
  static const std::int64_t level2 = cache_bytes(_SC_LEVEL2_CACHE_SIZE, 1 << 20),
                            level3 = cache_bytes(_SC_LEVEL3_CACHE_SIZE, 0);
#else
  static const std::int64_t level2 = 1 << 20, level3 = 0;
#endif
  Machine m;
#if defined(_OPENMP)
  m.threads = at::get_num_threads();
#endif
  m.near_bytes = std::max<std::int64_t>(1 << 20, level2 * m.threads);
  const std::int64_t shared = level3 * 85 / 100;
  m.stream_forward_bytes = std::max(m.near_bytes, std::min<std::int64_t>(shared, 64 << 20));
  m.stream_backward_bytes = m.near_bytes;
#if defined(__x86_64__)
  static const bool amd = __builtin_cpu_is("amd");
  if (amd) m.stream_backward_bytes = std::max(m.near_bytes, shared);
#endif
  return m;
}

void force_plan(const ForcedPlan& forced) { forced_plan = forced; }
Plan with_forced(Plan plan) {
  plan.threads = forced_plan.threads.value_or(plan.threads);
  plan.images_per_tile = forced_plan.images_per_tile.value_or(plan.images_per_tile);
  plan.stream = forced_plan.stream.value_or(plan.stream);
  return plan;
}

}  // namespace senet::bindings

TORCH_LIBRARY_IMPL(senet_fast, CPU, m) {
  m.impl("squeeze_excite", &senet::bindings::op_cpu);
  m.impl("squeeze_excite_into", &senet::bindings::into_cpu);
  m.impl("squeeze_excite_forward", &senet::bindings::forward_cpu);
  m.impl("squeeze_excite_backward", &senet::bindings::backward_cpu);
}
