// The interface: the ops, their shapes (Meta), and calls through the dispatcher.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "bindings/ops.h"

namespace senet::bindings {
namespace {

template <class Signature>
c10::TypedOperatorHandle<Signature> find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

Tensor op_meta(SENET_ARGUMENTS) {
  check({SENET_PASS});
  return at::empty_like(x);
}

Tensor prologue_meta(SENET_PROLOGUE_ARGUMENTS) {
  check_prologue({SENET_PASS}, pre_scale, pre_shift, pre_activation);
  return at::empty_like(x);
}

void into_meta(SENET_INTO_ARGUMENTS) {
  const Arguments arguments{SENET_PASS};
  check_prologue(arguments, pre_scale, pre_shift, pre_activation);
  check_out(arguments, out);
}

std::tuple<Tensor, Tensor> forward_meta(SENET_ARGUMENTS) {
  const Arguments arguments{SENET_PASS};
  check(arguments);
  return {at::empty_like(x), at::empty_symint({x.sym_size(0), saved_width(arguments)}, x.options().dtype(accumulate_type(x)))};
}

Gradients backward_meta(const Tensor& grad_y, const Tensor& saved, Mask mask, SENET_ARGUMENTS, const OptionalTensor& y) {
  const Arguments arguments{SENET_PASS};
  check_backward(arguments, y);
  return empty_gradients(arguments, y, mask);
}

}  // namespace

Tensor call_op(SENET_ARGUMENTS) {
  static const auto op = find<Op>("senet_fast::squeeze_excite");
  return op.call(SENET_PASS);
}
Tensor call_prologue(SENET_PROLOGUE_ARGUMENTS) {
  static const auto op = find<PrologueOp>("senet_fast::squeeze_excite_prologue");
  return op.call(SENET_PROLOGUE_PASS);
}
void call_into(SENET_INTO_ARGUMENTS) {
  static const auto op = find<IntoOp>("senet_fast::squeeze_excite_into");
  op.call(SENET_INTO_PASS);
}
std::tuple<Tensor, Tensor> call_forward(SENET_ARGUMENTS) {
  static const auto op = find<ForwardOp>("senet_fast::squeeze_excite_forward");
  return op.call(SENET_PASS);
}
Gradients call_backward(const Tensor& grad_y, const Tensor& saved, Mask mask, SENET_ARGUMENTS, const OptionalTensor& y) {
  static const auto op = find<BackwardOp>("senet_fast::squeeze_excite_backward");
  return op.call(grad_y, saved, mask, SENET_PASS, y);
}

Gradients empty_gradients(const Arguments& a, const OptionalTensor& y, Mask mask) {
  const auto like = [&](bool wanted, const OptionalTensor& t, at::MemoryFormat format) {
    return wanted && t.has_value() && t->defined() ? at::empty_like(*t, t->options(), format) : at::empty({0}, a.x.options());
  };
  constexpr auto kPreserve = at::MemoryFormat::Preserve, kContiguous = at::MemoryFormat::Contiguous;
  // with an activation the residual's gradient is what grad_x is made of: it is there whenever there is a residual
  const bool activated = a.post_activation != "identity";
  return {like(mask[0], a.x, kPreserve),
          like(mask[1], a.fc1_weight, kContiguous),
          like(mask[2], a.fc1_bias, kContiguous),
          like(mask[3], a.fc2_weight, kContiguous),
          like(mask[4], a.fc2_bias, kContiguous),
          like(mask[5] && activated, or_undefined(y).defined() ? y : a.residual, kPreserve)};
}

}  // namespace senet::bindings

TORCH_LIBRARY(senet_fast, m) {
  m.set_python_module("senet_fast.se");
  // dim without a default of its own: AOTInductor forgets to write down numbers that have their default
  const std::string arguments =
      "Tensor x, Tensor fc1_weight, Tensor? fc1_bias=None, Tensor? fc2_weight=None, Tensor? fc2_bias=None, "
      "Tensor? residual=None, *, str excitation='two_fc', str activation='relu', str gate='sigmoid', int? dim=None, "
      "bool add_one=False, str post_activation='identity'";
  const std::string prologue = ", Tensor? pre_scale=None, Tensor? pre_shift=None, str pre_activation='identity'";
  // any layout: Inductor, which runs convolutions in channels_last, would else transpose x and residual in front
  const auto define = [&](const std::string& schema, at::Tag layouts = at::Tag::flexible_layout) {
    m.def(torch::schema(schema.c_str()), {at::Tag::pt2_compliant_tag, layouts});
  };
  define("squeeze_excite(" + arguments + ") -> Tensor");
  // u = pre_activation(x * pre_scale + pre_shift) in the place of x, fused at inference
  define("squeeze_excite_prologue(" + arguments + prologue + ") -> Tensor");
  // and y into `out`, which may be x: for inference alone
  define("squeeze_excite_into(" + arguments + prologue + ", Tensor(a!) y) -> ()");
  // y and what backward needs, [B, 2 K + R]: see Params::saved
  define("squeeze_excite_forward(" + arguments + ") -> (Tensor y, Tensor saved)");
  define("squeeze_excite_backward(Tensor grad_y, Tensor saved, bool[6] mask, " + arguments +
         ", Tensor? y=None) -> (Tensor grad_x, Tensor grad_fc1_weight, Tensor grad_fc1_bias, Tensor grad_fc2_weight, "
         "Tensor grad_fc2_bias, Tensor grad_residual)");
}

TORCH_LIBRARY_IMPL(senet_fast, Meta, m) {
  m.impl("squeeze_excite", &senet::bindings::op_meta);
  m.impl("squeeze_excite_prologue", &senet::bindings::prologue_meta);
  m.impl("squeeze_excite_into", &senet::bindings::into_meta);
  m.impl("squeeze_excite_forward", &senet::bindings::forward_meta);
  m.impl("squeeze_excite_backward", &senet::bindings::backward_meta);
}
