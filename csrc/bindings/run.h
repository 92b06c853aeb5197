// The ops for a device that brings run(ForwardParams), run(BackwardParams) and run.made(tensor), which sees each new tensor of
// the size of x before it is written: outputs, copies of what does not fit, and the parameters.
#pragma once
#include <ATen/MemoryOverlap.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <utility>

#include "bindings/ops.h"

namespace senet::bindings {

// The residual, or y in its place, as the kernels read it; the tensor must outlive p.
inline Tensor set_residual(const OptionalTensor& given, const View& x, Params& p) {
  if (!given.has_value() || !given->defined()) return {};
  Tensor residual = matching(*given, x, false);
  p.epilogue.residual = residual.const_data_ptr();
  p.epilogue.residual_batch_stride = residual.stride(0);
  return residual;
}

inline const void* pointer_of(const Tensor& t) { return t.defined() ? t.const_data_ptr() : nullptr; }

// The prologue as the kernels read it, and the tensors that hold its numbers.
struct PrologueTensors {
  Tensor scale, shift;
  Prologue prologue;

  PrologueTensors(const Tensor& x, const OptionalTensor& pre_scale, const OptionalTensor& pre_shift,
                  c10::string_view pre_activation)
      : scale(numbers(x, pre_scale)),
        shift(numbers(x, pre_shift)),
        prologue{pointer_of(scale), pointer_of(shift), parse_activation(pre_activation, "pre_activation")} {}

 private:
  static Tensor numbers(const Tensor& x, const OptionalTensor& t) {
    return t.has_value() && t->defined() ? t->to(accumulate_type(x)).contiguous() : Tensor();
  }
};

// y into `out`, whose images lie in memory as those of x
template <class Run>
void forward_into(const Arguments& a, const View& x, const Tensor& out, void* saved, const Prologue& prologue, const Run& run) {
  const Weights weights = contiguous_weights(a);
  ForwardParams p;
  static_cast<Params&>(p) = params_of(a, x, weights);
  p.prologue = prologue;
  const Tensor residual = set_residual(a.residual, x, p);
  p.saved = saved;
  p.fc1_bias = pointer_of(weights.fc1_bias);
  p.fc2_bias = pointer_of(weights.fc2_bias);
  p.y = out.mutable_data_ptr();
  p.y_batch_stride = out.stride(0);
  run(p);
}

template <class Run>
Tensor forward_new(const Arguments& a, const Prologue& prologue, void* saved, const Run& run) {
  const View x = view(a.x, gated_axis(a.x, a.dim));
  Tensor y = at::empty_like(a.x);
  const Tensor out = matches(y, x, true) ? y : empty_dense(x);
  run.made(out);
  forward_into(a, x, out, saved, prologue, run);
  if (!out.is_same(y)) y.copy_(out);
  return y;
}

inline std::pair<const char*, const char*> range_of(const Tensor& t) {
  const char* begin = static_cast<const char*>(t.const_data_ptr());
  return {begin, begin + at::detail::computeStorageNbytes(t.sizes(), t.strides(), t.dtype().itemsize())};
}

// Of tensors of the same sizes. Axes of size 1 may have any stride: Inductor gives views of one buffer different ones.
inline bool is_same_place(const Tensor& a, const Tensor& b) {
  bool same = a.const_data_ptr() == b.const_data_ptr();
  for (std::int64_t d = 0; d < a.dim(); ++d) same = same && (a.size(d) == 1 || a.stride(d) == b.stride(d));
  return same;
}

inline bool overlap(const Tensor& a, const Tensor& b) {
  const auto [a_begin, a_end] = range_of(a);
  const auto [b_begin, b_end] = range_of(b);
  return a_begin < b_end && b_begin < a_end;
}

// `out` may be x itself, and share memory with the residual, but with nothing else.
inline void check_apart(const Arguments& a, const View& x, const Tensor& out) {
  at::assert_no_internal_overlap(out);
  const auto apart = [&](const OptionalTensor& t, const char* name, const char* allowed = "") {
    TORCH_CHECK_VALUE(!or_undefined(t).defined() || !overlap(out, *t), "squeeze_excite: out overlaps ", name,
                      "; expected another range of memory", allowed);
  };
  if (!is_same_place(out, x.tensor)) apart(x.tensor, "x", ", or the very same tensor");
  apart(a.fc1_weight, "fc1_weight");
  apart(a.fc1_bias, "fc1_bias");
  apart(a.fc2_weight, "fc2_weight");
  apart(a.fc2_bias, "fc2_bias");
}

// Whether the kernel may write y to `out`. It reads the residual at the same place just before it writes there, but with a
// prologue writes u to y first.
inline bool spares_residual(const Arguments& a, const Prologue& prologue, const Tensor& out) {
  const Tensor residual = or_undefined(a.residual);
  return !residual.defined() || !overlap(out, residual) || (prologue.is_identity() && is_same_place(out, residual));
}

template <class Run>
void forward_given(const Arguments& a, const Prologue& prologue, const Tensor& out, const Run& run) {
  const View x = view(a.x, gated_axis(a.x, a.dim));
  check_apart(a, x, out);
  const bool fits = matches(out, x, false), direct = fits && spares_residual(a, prologue, out);
  const Tensor y = direct ? out : empty_dense(x);
  if (!fits) {
    TORCH_WARN_ONCE("squeeze_excite: out (strides ", out.strides(), ") is not laid out as x (strides ", x.tensor.strides(),
                    "); y is copied");
  }
  forward_into(a, x, y, nullptr, prologue, run);
  if (!direct) out.copy_(y);
}

template <class Run>
Gradients gradients(const Tensor& grad_y, const Tensor& saved, Mask mask, const Arguments& a, const OptionalTensor& y,
                    const Run& run) {
  const Tensor& x = a.x;
  check_backward(a, y);
  TORCH_CHECK_VALUE(grad_y.sizes() == x.sizes() && grad_y.scalar_type() == x.scalar_type() && grad_y.device() == x.device(),
                    "squeeze_excite_backward: grad_y is ", grad_y.scalar_type(), " of shape ", grad_y.sizes(), " on ",
                    grad_y.device(), "; expected ", x.scalar_type(), " of ", x.sizes(), " on ", x.device());
  TORCH_CHECK_VALUE(saved.dim() == 2 && saved.size(0) == x.size(0) && saved.size(1) == saved_width(a).expect_int() &&
                        saved.scalar_type() == accumulate_type(x) && saved.device() == x.device(),
                    "squeeze_excite_backward: saved is ", saved.scalar_type(), " of shape ", saved.sizes(), " on ",
                    saved.device(), "; expected what squeeze_excite_forward returned for these arguments");
  const View v = view(x, gated_axis(x, a.dim));
  const Weights weights = contiguous_weights(a);
  Gradients gradients = empty_gradients(a, y, mask);
  auto& [grad_x, grad_fc1_weight, grad_fc1_bias, grad_fc2_weight, grad_fc2_bias, grad_residual] = gradients;
  BackwardParams p;
  static_cast<Params&>(p) = params_of(a, v, weights);
  const Tensor dy = matching(grad_y, v, true), states = saved.contiguous();
  p.saved = const_cast<void*>(states.const_data_ptr());  // read only in backward
  p.grad_y = dy.const_data_ptr();
  p.from_y = or_undefined(y).defined();
  const Tensor residual = set_residual(p.from_y ? y : a.residual, v, p);
  const bool activated = !p.epilogue.activation.is_identity();
  // the gradient as the kernels write it: `to` where that lies in memory as x does
  const auto laid_out = [&](bool wanted, const Tensor& to) {
    const Tensor made = wanted && matches(to, v, true) ? to : empty_dense(v);
    run.made(made);
    return made;
  };
  Tensor grad_v, dx;
  if (activated) {
    grad_v = laid_out(mask[5] && residual.defined(), grad_residual);
    p.grad_residual = grad_v.mutable_data_ptr();
  }
  if (mask[0]) {
    dx = laid_out(true, grad_x);
    p.grad_x = dx.mutable_data_ptr();
  }
  const auto pointer = [](bool wanted, const Tensor& weight, const Tensor& grad) {
    return wanted && weight.defined() ? grad.mutable_data_ptr() : nullptr;
  };
  p.grad_fc1_weight = pointer(mask[1], weights.fc1_weight, grad_fc1_weight);
  p.grad_fc1_bias = pointer(mask[2], weights.fc1_bias, grad_fc1_bias);
  p.grad_fc2_weight = pointer(mask[3], weights.fc2_weight, grad_fc2_weight);
  p.grad_fc2_bias = pointer(mask[4], weights.fc2_bias, grad_fc2_bias);
  run(p);
  if (mask[0] && !dx.is_same(grad_x)) grad_x.copy_(dx);
  if (activated && mask[5] && residual.defined() && !grad_v.is_same(grad_residual)) grad_residual.copy_(grad_v);
  return gradients;
}

}  // namespace senet::bindings
