// A 1x1 convolution with Squeeze-and-Excitation beside it: the interface, and the same in other ops.
#include "bindings/conv.h"

#include <ATen/TensorOperators.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/conv1d.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/conv3d.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "bindings/ops.h"

namespace senet::bindings {
namespace {

#define SENET_CONV "squeeze_excite_conv: "

// t, where there is one, has the shape [n] for n channels that come out, and is on the device of x.
void check_per_channel(const ConvArguments& a, const OptionalTensor& t, const char* name) {
  if (!or_undefined(t).defined()) return;
  const c10::SymInt channels = a.weight.sym_size(0);
  TORCH_CHECK_VALUE(t->dim() == 1 && t->sym_size(0) == channels, SENET_CONV, name, " has shape ", t->sym_sizes(),
                    "; expected [", channels, "]");
  TORCH_CHECK_TYPE(t->is_floating_point(), SENET_CONV, name, " is ", t->scalar_type(), "; expected a floating-point tensor");
  TORCH_CHECK_VALUE(t->device() == a.x.device(), SENET_CONV, name, " is on ", t->device(), "; expected the device of x (",
                    a.x.device(), ")");
}

Tensor conv_meta(SENET_CONV_ARGUMENTS) {
  check_conv({SENET_CONV_PASS});
  c10::SymDimVector sizes(x.sym_sizes().begin(), x.sym_sizes().end());
  sizes[1] = weight.sym_size(0);
  return at::empty_symint(sizes, x.options(), format_of(x));
}

// y is what conv_meta would make but for its layout, and may be the residual.
void conv_into_meta(SENET_CONV_ARGUMENTS, const Tensor& y) {
  const Tensor like = conv_meta(SENET_CONV_PASS);
  TORCH_CHECK_VALUE(y.sym_sizes().equals(like.sym_sizes()), SENET_CONV, "y has shape ", y.sym_sizes(), "; expected ",
                    like.sym_sizes());
  TORCH_CHECK_TYPE(y.scalar_type() == x.scalar_type(), SENET_CONV, "y is ", y.scalar_type(), "; expected the dtype of x (",
                   x.scalar_type(), ")");
}

void refuse_gradients(std::initializer_list<Tensor> tensors) {
  for (const Tensor& t : tensors) {
    if (!t.defined()) continue;
    TORCH_CHECK(!at::GradMode::is_enabled() || !t.requires_grad(), SENET_CONV,
                "has no derivative; expected torch.no_grad() or inputs that require no gradient");
    TORCH_CHECK(!t.key_set().has(c10::DispatchKey::FuncTorchGradWrapper) && !t._fw_grad(0).defined(), SENET_CONV,
                "takes neither tangents nor torch.func's tensors");
  }
}
#define SENET_CONV_TENSORS                                                                                             \
  x, weight, or_undefined(bias), fc1_weight, or_undefined(fc1_bias), or_undefined(fc2_weight), or_undefined(fc2_bias), \
      or_undefined(residual), or_undefined(norm_scale), or_undefined(norm_shift), or_undefined(pre_scale),             \
      or_undefined(pre_shift)

Tensor conv_autograd(SENET_CONV_ARGUMENTS) {
  refuse_gradients({SENET_CONV_TENSORS});
  at::AutoDispatchBelowADInplaceOrView guard;
  return call_conv(SENET_CONV_PASS);
}

void call_conv_into(SENET_CONV_ARGUMENTS, const Tensor& y) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("senet_fast::squeeze_excite_conv_into", "").typed<ConvIntoOp>();
  op.call(SENET_CONV_PASS, y);
}

void conv_into_autograd(SENET_CONV_ARGUMENTS, const Tensor& y) {
  refuse_gradients({SENET_CONV_TENSORS, y});
  at::AutoDispatchBelowAutograd guard;
  call_conv_into(SENET_CONV_PASS, y);
}

void conv_into_inplace(SENET_CONV_ARGUMENTS, const Tensor& y) {
  {
    at::AutoDispatchBelowADInplaceOrView guard;
    call_conv_into(SENET_CONV_PASS, y);
  }
  if (!y.is_inference()) y.unsafeGetTensorImpl()->bump_version();
}

// The types under autocast are those of the convolution: x and the residual are cast. Weights stay as they are: the op reads
// float32 beside a half x, and what is neither becomes that.
template <c10::DispatchKey kKey>
Tensor conv_autocast(SENET_CONV_ARGUMENTS) {
  c10::impl::ExcludeDispatchKeyGuard no_autocast(kKey);
  const at::ScalarType type =
      x.scalar_type() == at::kDouble
          ? at::kDouble
          : at::autocast::get_autocast_dtype(kKey == c10::DispatchKey::AutocastCPU ? at::kCPU : at::kCUDA);
  const auto cast = [](const OptionalTensor& t, at::ScalarType to) {
    return or_undefined(t).defined() && t->is_floating_point() && t->scalar_type() != at::kDouble ? OptionalTensor(t->to(to))
                                                                                                  : t;
  };
  const auto beside = [&](const Tensor& first, const OptionalTensor& t) {
    return first.scalar_type() == type ? t : cast(t, at::kFloat);
  };
  return call_conv(*cast(x, type), *beside(weight, weight), beside(weight, bias), *beside(fc1_weight, fc1_weight),
                   beside(fc1_weight, fc1_bias), beside(fc1_weight, fc2_weight), beside(fc1_weight, fc2_bias),
                   cast(residual, type), side, norm_scale, norm_shift, excitation, activation, gate, add_one, post_activation,
                   pre_scale, pre_shift, pre_activation, prepared);
}

}  // namespace

bool gates_output(std::string_view side) {
  if (side == "output") return true;
  TORCH_CHECK_VALUE(side == "input", SENET_CONV, "side is '", side, "'; expected input or output");
  return false;
}

at::MemoryFormat format_of(const Tensor& x) { return x.suggest_memory_format(); }

void check_conv(const ConvArguments& a) {
  TORCH_CHECK_VALUE(a.x.dim() >= 3 && a.x.dim() <= 5, SENET_CONV, "x has shape ", a.x.sym_sizes(),
                    "; expected [B, C, ...], 3-D to 5-D");
  const at::ScalarType type = a.x.scalar_type();
  TORCH_CHECK_TYPE(type == at::kFloat || type == at::kDouble || type == at::kBFloat16 || type == at::kHalf, SENET_CONV, "x is ",
                   type, "; expected Float, Double, BFloat16 or Half");
  const c10::SymInt channels = a.x.sym_size(1);
  TORCH_CHECK_VALUE(channels != 0, SENET_CONV, "x has shape ", a.x.sym_sizes(), "; expected at least 1 channel along dim 1");
  const auto sizes = a.weight.sym_sizes();
  bool fits = sizes.size() >= 2 && sizes[0] != 0 && sizes[1] == channels;
  for (std::size_t i = 2; fits && i < sizes.size(); ++i) fits = sizes[i] == 1;
  TORCH_CHECK_VALUE(fits, SENET_CONV, "weight has shape ", sizes, "; expected [C_out, ", channels,
                    "] with C_out at least 1 (or with further axes of size 1)");
  TORCH_CHECK_TYPE(a.weight.scalar_type() == type || a.weight.scalar_type() == at::kFloat, SENET_CONV, "weight is ",
                   a.weight.scalar_type(), "; expected the dtype of x (", type, ") or Float");
  TORCH_CHECK_VALUE(a.weight.device() == a.x.device(), SENET_CONV, "weight is on ", a.weight.device(),
                    "; expected the device of x (", a.x.device(), ")");
  check_per_channel(a, a.bias, "bias");
  check_per_channel(a, a.norm_scale, "norm_scale");
  check_per_channel(a, a.norm_shift, "norm_shift");
  check_pre(a.x, 1, a.pre_scale, a.pre_shift, a.pre_activation);
  check_excitation(a.beside(), gates_output(a.side) ? sizes[0] : channels);
  const Tensor residual = or_undefined(a.residual);
  if (!residual.defined()) return;
  c10::SymDimVector expected(a.x.sym_sizes().begin(), a.x.sym_sizes().end());
  expected[1] = sizes[0];
  TORCH_CHECK_VALUE(residual.sym_sizes().equals(expected), SENET_CONV, "residual has shape ", residual.sym_sizes(),
                    "; expected ", c10::SymIntArrayRef(expected));
  TORCH_CHECK_TYPE(residual.scalar_type() == type, SENET_CONV, "residual is ", residual.scalar_type(),
                   "; expected the dtype of x (", type, ")");
  TORCH_CHECK_VALUE(residual.device() == a.x.device(), SENET_CONV, "residual is on ", residual.device(),
                    "; expected the device of x (", a.x.device(), ")");
}

Tensor conv_composed(SENET_CONV_ARGUMENTS) {
  const ConvArguments a{SENET_CONV_PASS};
  check_conv(a);
  const at::ScalarType type = x.scalar_type(), wide = accumulate_type(x);
  const bool behind = gates_output(side), normed = or_undefined(norm_scale).defined() || or_undefined(norm_shift).defined();
  const auto convolve = [&](const Tensor& u) {
    c10::DimVector sizes(x.dim(), 1);
    sizes[0] = weight.size(0);
    sizes[1] = weight.size(1);
    const Tensor w = weight.to(type).reshape(sizes);
    const OptionalTensor b = or_undefined(bias).defined() ? OptionalTensor(bias->to(type)) : OptionalTensor();
    return x.dim() == 3 ? at::conv1d(u, w, b) : x.dim() == 4 ? at::conv2d(u, w, b) : at::conv3d(u, w, b);
  };
  const auto per_channel = [&](const Tensor& t) {
    c10::DimVector sizes(x.dim(), 1);
    sizes[1] = weight.size(0);
    return t.to(wide).reshape(sizes);
  };
  const OptionalTensor none;
  Tensor y;
  if (behind) {
    const Tensor u = convolve(prologued(x, 1, pre_scale, pre_shift, pre_activation));
    y = normed ? call_prologue(u, fc1_weight, fc1_bias, fc2_weight, fc2_bias, residual, excitation, activation, gate, 1,
                               add_one, post_activation, norm_scale, norm_shift, "identity")
               : call_op(u, fc1_weight, fc1_bias, fc2_weight, fc2_bias, residual, excitation, activation, gate, 1, add_one,
                         post_activation);
  } else {
    y = convolve(call_prologue(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias, none, excitation, activation, gate, 1, add_one,
                               "identity", pre_scale, pre_shift, pre_activation))
            .to(wide);
    if (or_undefined(norm_scale).defined()) y = y * per_channel(*norm_scale);
    if (or_undefined(norm_shift).defined()) y = y + per_channel(*norm_shift);
    if (or_undefined(residual).defined()) y = y + *residual;
    y = activate(post_activation, "post_activation", y).to(type);
  }
  return y.contiguous(format_of(x));
}

Tensor call_conv(SENET_CONV_ARGUMENTS) {
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("senet_fast::squeeze_excite_conv", "").typed<ConvOp>();
  return op.call(SENET_CONV_PASS);
}

}  // namespace senet::bindings

TORCH_LIBRARY_FRAGMENT(senet_fast, m) {
  const std::string arguments =
      "Tensor x, Tensor weight, Tensor? bias, Tensor fc1_weight, Tensor? fc1_bias=None, Tensor? fc2_weight=None, "
      "Tensor? fc2_bias=None, Tensor? residual=None, *, str side='input', Tensor? norm_scale=None, Tensor? norm_shift=None, "
      "str excitation='two_fc', str activation='relu', str gate='sigmoid', bool add_one=False, "
      "str post_activation='identity', Tensor? pre_scale=None, Tensor? pre_shift=None, str pre_activation='identity', "
      "Tensor[] prepared";
  // y is laid out by what x is: any layout will do
  const auto define = [&](const std::string& schema) {
    m.def(torch::schema(schema.c_str()), {at::Tag::pt2_compliant_tag, at::Tag::flexible_layout});
  };
  define("squeeze_excite_conv(" + arguments + ") -> Tensor");
  // the same with y in memory of the caller's, which may be that of the residual
  define("squeeze_excite_conv_into(" + arguments + ", Tensor(a!) y) -> ()");
}

TORCH_LIBRARY_IMPL(senet_fast, Meta, m) {
  m.impl("squeeze_excite_conv", &senet::bindings::conv_meta);
  m.impl("squeeze_excite_conv_into", &senet::bindings::conv_into_meta);
}
TORCH_LIBRARY_IMPL(senet_fast, CUDA, m) { m.impl("squeeze_excite_conv", &senet::bindings::conv_composed); }
TORCH_LIBRARY_IMPL(senet_fast, Autograd, m) {
  m.impl("squeeze_excite_conv", &senet::bindings::conv_autograd);
  m.impl("squeeze_excite_conv_into", &senet::bindings::conv_into_autograd);
}
TORCH_LIBRARY_IMPL(senet_fast, ADInplaceOrView, m) { m.impl("squeeze_excite_conv_into", &senet::bindings::conv_into_inplace); }
TORCH_LIBRARY_IMPL(senet_fast, AutocastCPU, m) {
  m.impl("squeeze_excite_conv", &senet::bindings::conv_autocast<c10::DispatchKey::AutocastCPU>);
}
TORCH_LIBRARY_IMPL(senet_fast, AutocastCUDA, m) {
  m.impl("squeeze_excite_conv", &senet::bindings::conv_autocast<c10::DispatchKey::AutocastCUDA>);
}
