// The ops on the CPU: outputs from torch's allocator, one team of threads, one call into drive.h.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <sstream>
#include <string>

#include "bindings/cpu.h"
#include "bindings/ops.h"
#include "bindings/run.h"
#include "bindings/team.h"
#include "se/cpu/drive.h"

namespace senet::bindings {
namespace {

// "images_per_tile=8,stream=0": what force_plan does, from the start.
ForcedPlan plan_in_environment() {
  ForcedPlan forced;
  const char* text = std::getenv("SENET_FAST_PLAN");
  std::istringstream items(text == nullptr ? "" : text);
  for (std::string item; std::getline(items, item, ',');) {
    const std::size_t equals = std::min(item.find('='), item.size());
    const std::string name = item.substr(0, equals), value = item.substr(std::min(equals + 1, item.size()));
    const bool number = !value.empty() && value.size() < 10 && value.find_first_not_of("0123456789") == std::string::npos;
    const std::int64_t n = number ? std::stoll(value) : -1;
    const bool count = n >= 1, flag = n == 0 || n == 1;
    if (name == "threads" && count) {
      forced.threads = n;
    } else if (name == "images_per_tile" && count) {
      forced.images_per_tile = n;
    } else if (name == "stream" && flag) {
      forced.stream = n == 1;
    } else if (name == "overlap" && flag) {
      forced.overlap = n == 1;
    } else {
      TORCH_CHECK_VALUE(false, "SENET_FAST_PLAN has '", item,
                        "'; expected threads, images_per_tile (1 or more), stream or overlap (0 or 1), as in stream=0");
    }
  }
  return forced;
}
ForcedPlan& forced_plan() {
  static ForcedPlan forced = plan_in_environment();
  return forced;
}

struct RunOnCpu {
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
  return forward_new(a, {}, nullptr, RunOnCpu());
}

Tensor prologue_cpu(SENET_PROLOGUE_ARGUMENTS) {
  const Arguments a{SENET_PASS};
  check_prologue(a, pre_scale, pre_shift, pre_activation);
  const PrologueTensors pre(x, pre_scale, pre_shift, pre_activation);
  return forward_new(a, pre.prologue, nullptr, RunOnCpu());
}

void into_cpu(SENET_INTO_ARGUMENTS) {
  const Arguments a{SENET_PASS};
  check_prologue(a, pre_scale, pre_shift, pre_activation);
  check_out(a, out);
  const PrologueTensors pre(x, pre_scale, pre_shift, pre_activation);
  forward_given(a, pre.prologue, out, RunOnCpu());
}

std::tuple<Tensor, Tensor> forward_cpu(SENET_ARGUMENTS) {
  const Arguments a{SENET_PASS};
  check(a);
  Tensor saved = at::empty({x.size(0), saved_width(a).expect_int()}, x.options().dtype(accumulate_type(x)));
  return {forward_new(a, {}, saved.mutable_data_ptr(), RunOnCpu()), saved};
}

Gradients backward_cpu(const Tensor& grad_y, const Tensor& saved, Mask mask, SENET_ARGUMENTS, const OptionalTensor& y) {
  return gradients(grad_y, saved, mask, {SENET_PASS}, y, RunOnCpu());
}

}  // namespace

Machine machine() {
#if defined(SENET_FAST_OPENMP)
  return machine_of(at::get_num_threads());
#else
  return machine_of(1);
#endif
}

void force_plan(const ForcedPlan& forced) { forced_plan() = forced; }
Plan with_forced(Plan plan) {
  const ForcedPlan& forced = forced_plan();
  plan.threads = forced.threads.value_or(plan.threads);
  plan.images_per_tile = forced.images_per_tile.value_or(plan.images_per_tile);
  plan.stream = forced.stream.value_or(plan.stream);
  plan.overlap = forced.overlap.value_or(plan.overlap);
  return plan;
}

}  // namespace senet::bindings

TORCH_LIBRARY_IMPL(senet_fast, CPU, m) {
  m.impl("squeeze_excite", &senet::bindings::op_cpu);
  m.impl("squeeze_excite_prologue", &senet::bindings::prologue_cpu);
  m.impl("squeeze_excite_into", &senet::bindings::into_cpu);
  m.impl("squeeze_excite_forward", &senet::bindings::forward_cpu);
  m.impl("squeeze_excite_backward", &senet::bindings::backward_cpu);
}
