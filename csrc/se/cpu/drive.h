// Forward and backward on the CPU. The caller brings the threads: run_team(threads, body) calls body(member) for every
// member of a team of at most that many.
#pragma once
#include "se/cpu/backward.h"
#include "se/cpu/forward.h"

namespace senet {

inline std::int64_t weight_elements(const Params& p) {
  const Shape& s = p.shape;
  return p.excitation == Excitation::two_fc ? 2 * s.R * s.K : p.excitation == Excitation::one_fc ? s.K * s.K : s.R;
}

inline Plan plan_forward(const ForwardParams& p, const Machine& machine) {
  const std::int64_t tensors = (p.epilogue.residual ? 3 : 2) - (p.y == p.x || p.y == p.epilogue.residual ? 1 : 0);
  const std::int64_t weight_bytes = weight_elements(p) * item_bytes(p.weight_dtype);
  Plan cut = plan(p.shape, {item_bytes(p.dtype), weight_bytes, machine.stream_forward_bytes, tensors}, machine);
  if (!p.prologue.is_identity()) cut.overlap = false;
  // in all three y's lines are in the cache already
  if (p.y == p.x || p.y == p.epilogue.residual || !p.prologue.is_identity()) cut.stream = false;
  return cut;
}
inline Plan plan_backward(const Params& p, const Machine& machine) {
  const std::int64_t tensors = p.epilogue.activation.is_identity() ? 3 : p.epilogue.residual ? 5 : 4;
  const std::int64_t weight_bytes = 2 * weight_elements(p) * item_bytes(p.weight_dtype);
  Plan cut = plan(p.shape, {item_bytes(p.dtype), weight_bytes, machine.stream_backward_bytes, tensors, 2}, machine);
  cut.overlap = false;  // it reads twice as much as it writes: nothing was gained
  return cut;
}

template <class RunTeam>
void forward(const ForwardParams& p, const Kernels& kernels, const Plan& plan, const RunTeam& run_team) {
  if (p.dtype == Dtype::f64) {
    run_team(plan.threads, Forward<double>(p, kernels, plan));
  } else {
    run_team(plan.threads, Forward<float>(p, kernels, plan));
  }
}

template <class RunTeam>
void backward(const BackwardParams& p, const Kernels& kernels, const Plan& plan, const RunTeam& run_team) {
  if (p.dtype == Dtype::f64) {
    run_team(plan.threads, Backward<double>(p, kernels, plan));
  } else {
    run_team(plan.threads, Backward<float>(p, kernels, plan));
  }
}

}  // namespace senet
