// The ops on the CPU: outputs from torch's allocator, one team of threads, one call into drive.h.
#include <ATen/EmptyTensor.h>
#include <ATen/MemoryOverlap.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
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
#include <utility>

#include "bindings/cpu.h"
#include "bindings/ops.h"
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

// The residual as the kernels read it; the tensor must outlive p.
Tensor set_residual(const Arguments& a, const View& x, Params& p) {
  if (!a.residual.has_value() || !a.residual->defined()) return {};
  Tensor residual = matching(*a.residual, x, false);
  p.epilogue.residual = residual.const_data_ptr();
  p.epilogue.residual_batch_stride = residual.stride(0);
  return residual;
}

// y into `out`, whose images lie in memory as those of x
void run_forward(const Arguments& a, const View& x, const Tensor& out, void* saved, const Prologue& prologue = {}) {
  const Weights weights = contiguous_weights(a);
  ForwardParams p;
  static_cast<Params&>(p) = params_of(a, x, weights);
  p.prologue = prologue;
  const Tensor residual = set_residual(a, x, p);
  std::unique_ptr<char[]> scratch;
  if (saved == nullptr) {
    const std::int64_t bytes = p.shape.B * p.saved_width() * (p.dtype == Dtype::f64 ? 8 : 4);
    scratch.reset(new char[static_cast<std::size_t>(bytes)]);
  }
  p.saved = saved ? saved : scratch.get();
  p.fc1_bias = weights.fc1_bias.defined() ? weights.fc1_bias.const_data_ptr() : nullptr;
  p.fc2_bias = weights.fc2_bias.defined() ? weights.fc2_bias.const_data_ptr() : nullptr;
  p.y = out.mutable_data_ptr();
  p.y_batch_stride = out.stride(0);
  forward(p, kernels(), with_forced(plan_forward(p, machine())), run_team);
}

Tensor run_forward(const Arguments& a, void* saved) {
  const View x = view(a.x, gated_axis(a.x, a.dim));
  Tensor y = at::empty_like(a.x);
  const Tensor out = matches(y, x, true) ? y : empty_dense(x);
  advise_huge_pages(out);
  run_forward(a, x, out, saved);
  if (!out.is_same(y)) y.copy_(out);
  return y;
}

Tensor op_cpu(SENET_ARGUMENTS) {
  const Arguments a{SENET_PASS};
  check(a);
  return run_forward(a, nullptr);
}

std::pair<const char*, const char*> memory_range(const Tensor& t) {
  const char* begin = static_cast<const char*>(t.const_data_ptr());
  return {begin, begin + at::detail::computeStorageNbytes(t.sizes(), t.strides(), t.dtype().itemsize())};
}

void into_cpu(SENET_INTO_ARGUMENTS) {
  const Arguments a{SENET_PASS};
  check_into(a, pre_scale, pre_shift, pre_activation, out);
  at::assert_no_internal_overlap(out);
  const auto numbers = [&](const OptionalTensor& t) {
    return t.has_value() && t->defined() ? t->to(accumulate_type(x)).contiguous() : Tensor();
  };
  const Tensor scale = numbers(pre_scale), shift = numbers(pre_shift);
  const Prologue prologue{scale.defined() ? scale.const_data_ptr() : nullptr,
                          shift.defined() ? shift.const_data_ptr() : nullptr,
                          parse_activation(pre_activation, "pre_activation")};
  const View v = view(x, gated_axis(x, dim));
  const auto apart = [&](const Tensor& t, const char* name, bool may_be_same) {
    const auto [out_begin, out_end] = memory_range(out);
    const auto [begin, end] = memory_range(t);
    const bool same = out_begin == begin && out.strides() == t.strides();
    TORCH_CHECK_VALUE(end <= out_begin || out_end <= begin || (same && may_be_same), "squeeze_excite: out overlaps ", name,
                      "; expected another range of memory", may_be_same ? ", or the very same tensor" : "");
  };
  apart(v.tensor, "x", true);
  apart(fc1_weight, "fc1_weight", false);
  for (const auto& [t, name] : {std::pair{&fc1_bias, "fc1_bias"}, {&fc2_weight, "fc2_weight"}, {&fc2_bias, "fc2_bias"}}) {
    if (t->has_value() && (*t)->defined()) apart(**t, name, false);
  }
  if (residual.has_value() && residual->defined()) apart(*residual, "residual", prologue.is_identity());
  const bool fits = matches(out, v, false);
  const Tensor y = fits ? out : empty_dense(v);
  if (!fits) {
    TORCH_WARN_ONCE("squeeze_excite: out (strides ", out.strides(), ") is not laid out as x (strides ", v.tensor.strides(),
                    "); y is copied");
  }
  run_forward(a, v, y, nullptr, prologue);
  if (!fits) out.copy_(y);
}

std::tuple<Tensor, Tensor> forward_cpu(SENET_ARGUMENTS) {
  const Arguments a{SENET_PASS};
  check(a);
  Tensor saved = at::empty({x.size(0), saved_width(a).expect_int()}, x.options().dtype(accumulate_type(x)));
  return {run_forward(a, saved.mutable_data_ptr()), saved};
}

Gradients backward_cpu(const Tensor& grad_y, const Tensor& saved, Mask mask, SENET_ARGUMENTS) {
  const Arguments a{SENET_PASS};
  check(a);
  TORCH_CHECK_VALUE(grad_y.sizes() == x.sizes() && grad_y.scalar_type() == x.scalar_type(),
                    "squeeze_excite_backward: grad_y is ", grad_y.scalar_type(), " of shape ", grad_y.sizes(), "; expected ",
                    x.scalar_type(), " of ", x.sizes());
  TORCH_CHECK_VALUE(saved.dim() == 2 && saved.size(0) == x.size(0) && saved.size(1) == saved_width(a).expect_int() &&
                        saved.scalar_type() == accumulate_type(x),
                    "squeeze_excite_backward: saved is ", saved.scalar_type(), " of shape ", saved.sizes(),
                    "; expected what squeeze_excite_forward returned for these arguments");
  const View v = view(x, gated_axis(x, dim));
  const Weights weights = contiguous_weights(a);
  Gradients gradients = empty_gradients(a, mask);
  auto& [grad_x, grad_fc1_weight, grad_fc1_bias, grad_fc2_weight, grad_fc2_bias, grad_residual] = gradients;

  BackwardParams p;
  static_cast<Params&>(p) = params_of(a, v, weights);
  const Tensor dy = matching(grad_y, v, true), states = saved.contiguous();
  p.saved = const_cast<void*>(states.const_data_ptr());  // read only in backward
  p.grad_y = dy.const_data_ptr();
  const Tensor residual_in = set_residual(a, v, p);
  const bool activated = !p.epilogue.activation.is_identity();
  Tensor grad_v;
  if (activated) {
    grad_v = mask[5] && matches(grad_residual, v, true) && residual_in.defined() ? grad_residual : empty_dense(v);
    advise_huge_pages(grad_v);
    p.grad_residual = grad_v.mutable_data_ptr();
  }
  Tensor dx;
  if (mask[0]) {
    dx = matches(grad_x, v, true) ? grad_x : empty_dense(v);
    advise_huge_pages(dx);
    p.grad_x = dx.mutable_data_ptr();
  }
  const auto pointer = [](bool wanted, const Tensor& weight, const Tensor& grad) {
    return wanted && weight.defined() ? grad.mutable_data_ptr() : nullptr;
  };
  p.grad_fc1_weight = pointer(mask[1], weights.fc1_weight, grad_fc1_weight);
  p.grad_fc1_bias = pointer(mask[2], weights.fc1_bias, grad_fc1_bias);
  p.grad_fc2_weight = pointer(mask[3], weights.fc2_weight, grad_fc2_weight);
  p.grad_fc2_bias = pointer(mask[4], weights.fc2_bias, grad_fc2_bias);
  backward(p, kernels(), with_forced(plan_backward(p, machine())), run_team);
  if (mask[0] && !dx.is_same(grad_x)) grad_x.copy_(dx);
  if (activated && mask[5] && residual_in.defined() && !grad_v.is_same(grad_residual)) grad_residual.copy_(grad_v);
  return gradients;
}

}  // namespace

// Near is the L2 of each thread in use: with a share of the L3 as well, three of four shapes were 1.15x to 1.4x slower.
// Far: from where streaming wins. On Intel's servers that is right behind the L2 (x of 3.2 MB on 2 x 2 MB: 84 us against 99);
// on AMD's a thread's L3 is about as fast as its L2 and streaming lost 2x to 4x inside it.
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
  m.far_bytes = m.near_bytes;
#if defined(__x86_64__)
  static const bool amd = __builtin_cpu_is("amd");
  if (amd) m.far_bytes = std::max(m.far_bytes, level3 * 85 / 100);
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
