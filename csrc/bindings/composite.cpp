// The op in plain ATen ops, the C++ side's twin of senet_fast/se/reference.py.
#include <ATen/TensorOperators.h>
#include <ATen/ops/clamp.h>
#include <ATen/ops/conv1d.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/hardsigmoid.h>
#include <ATen/ops/hardswish.h>
#include <ATen/ops/hardtanh.h>
#include <ATen/ops/leaky_relu.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mean.h>
#include <ATen/ops/mish.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/tanh.h>

#include "bindings/ops.h"

namespace senet::bindings {

Tensor activate(std::string_view spec, const char* argument, const Tensor& z) {
  const Activation activation = parse_activation(spec, argument);
  const double* p = activation.arguments;
  switch (activation.kind) {
    case ActivationKind::identity:
      return z;
    case ActivationKind::relu:
      return at::relu(z);
    case ActivationKind::relu6:
      return at::hardtanh(z, 0, 6);
    case ActivationKind::leaky_relu:
      return at::leaky_relu(z, p[0]);
    case ActivationKind::sigmoid:
      return at::sigmoid(z);
    case ActivationKind::hardsigmoid:
      return at::hardsigmoid(z);
    case ActivationKind::tanh:
      return at::tanh(z);
    case ActivationKind::silu:
      return at::silu(z);
    case ActivationKind::hardswish:
      return at::hardswish(z);
    case ActivationKind::gelu:
      return at::gelu(z);
    case ActivationKind::gelu_tanh:
      return at::gelu(z, "tanh");
    case ActivationKind::mish:
      return at::mish(z);
    case ActivationKind::affine_clamp:
      return at::clamp(z * p[0] + p[1], p[2], p[3]);
  }
  TORCH_INTERNAL_ASSERT(false, "an activation without a composite");
}

namespace {
Tensor matrix(const Tensor& weight) { return weight.flatten(1); }
}  // namespace

Tensor composite(SENET_ARGUMENTS) {
  check({SENET_PASS});
  const std::int64_t axis = gated_axis(x, dim);
  std::vector<std::int64_t> pooled;
  for (std::int64_t d = 1; d < x.dim(); ++d) {
    if (d != axis) pooled.push_back(d);
  }
  const at::ScalarType type = accumulate_type(x);
  const auto wide = [&](const OptionalTensor& t) { return t.has_value() && t->defined() ? t->to(type) : Tensor(); };
  const Tensor u = x.to(type), squeezed = pooled.empty() ? u : at::mean(u, pooled);
  Tensor z;
  switch (parse_excitation(excitation)) {
    case Excitation::two_fc: {
      const Tensor hidden = at::linear(squeezed, matrix(wide(fc1_weight)), wide(fc1_bias));
      z = at::linear(activate(activation, "activation", hidden), matrix(wide(fc2_weight)), wide(fc2_bias));
      break;
    }
    case Excitation::one_fc:
      z = at::linear(squeezed, matrix(wide(fc1_weight)), wide(fc1_bias));
      break;
    case Excitation::channel_conv: {
      const Tensor taps = wide(fc1_weight).reshape({1, 1, -1});
      z = at::conv1d(squeezed.unsqueeze(1), taps, wide(fc1_bias), 1, "same").squeeze(1);
      break;
    }
  }
  Tensor scale = activate(gate, "gate", z);
  if (add_one) scale = scale + 1;
  for (std::int64_t d : pooled) scale = scale.unsqueeze(d);
  Tensor y = u * scale;
  if (residual.has_value() && residual->defined()) y = y + *residual;
  return activate(post_activation, "post_activation", y).to(x.scalar_type());
}

Tensor prologued(const Tensor& x, OptionalDim dim, const OptionalTensor& pre_scale, const OptionalTensor& pre_shift,
                 std::string_view pre_activation) {
  check_pre(x, dim, pre_scale, pre_shift, pre_activation);
  const at::ScalarType type = accumulate_type(x);
  const auto along_axis = [&](const OptionalTensor& t) {
    Tensor numbers = t->to(type);
    for (std::int64_t d = gated_axis(x, dim) + 1; d < x.dim(); ++d) numbers = numbers.unsqueeze(-1);
    return numbers;
  };
  Tensor u = x.to(type);
  if (or_undefined(pre_scale).defined()) u = u * along_axis(pre_scale);
  if (or_undefined(pre_shift).defined()) u = u + along_axis(pre_shift);
  return activate(pre_activation, "pre_activation", u).to(x.scalar_type());
}

Tensor behind_prologue(Op& op, SENET_PROLOGUE_ARGUMENTS) {
  const Tensor u = prologued(x, dim, pre_scale, pre_shift, pre_activation);
  return op(u, fc1_weight, fc1_bias, fc2_weight, fc2_bias, residual, excitation, activation, gate, dim, add_one,
            post_activation);
}

}  // namespace senet::bindings
