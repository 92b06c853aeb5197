// The list of activations and gates: a new one is a row here and a row in senet_fast/se/activations.py.
#pragma once

// X(name, arguments, default of a single optional argument or kRequired, value, gradient)
// value is an expression in z, the pre-activation (float or double), and p[], the arguments; gradient also in g, the gradient
// of the value. A NaN in z stays one where torch's does: comparisons are written so that it takes the branch that returns z.
// Where a branch is closed the gradient is 0 whatever g is, as in torch, not 0 * g. They are compiled once per ISA and for
// the GPU, with the functions of formulas.inl in scope.
// clang-format off
#define SENET_ACTIVATIONS(X) \
  X(identity, 0, kRequired, z, g) \
  X(relu, 0, kRequired, z < 0 ? 0 : z, z <= 0 ? 0 : g) \
  X(relu6, 0, kRequired, clamp(z, 0, 6), z <= 0 || z >= 6 ? 0 : g) \
  X(leaky_relu, 1, 0.01, z > 0 ? z : z * p[0], z > 0 ? g : g * p[0]) \
  X(sigmoid, 0, kRequired, sigmoid(z), g * sigmoid_slope(z)) \
  X(hardsigmoid, 0, kRequired, clamp(z + 3, 0, 6) / 6, z <= -3 || z >= 3 ? 0 : g / 6) \
  X(tanh, 0, kRequired, tanh(z), g * (1 - tanh(z) * tanh(z))) \
  X(silu, 0, kRequired, z * sigmoid(z), g * (sigmoid(z) + z * sigmoid_slope(z))) \
  X(hardswish, 0, kRequired, z * (clamp(z + 3, 0, 6) / 6), z <= -3 ? 0 : (z >= 3 ? g : g * (z / 3 + A(0.5)))) \
  X(gelu, 0, kRequired, z * normal_cdf(z), g * (normal_cdf(z) + z * normal_pdf(z))) \
  X(gelu_tanh, 0, kRequired, z * A(0.5) * (1 + tanh(gelu_inner(z))), g * gelu_tanh_slope(z)) \
  X(mish, 0, kRequired, z * tanh_softplus(z), g * mish_slope(z)) \
  X(affine_clamp, 4, kRequired, clamp(p[0] * z + p[1], p[2], p[3]), \
    p[0] * z + p[1] < p[2] || p[0] * z + p[1] > p[3] ? 0 : g * p[0])
// clang-format on

namespace senet {

enum class ActivationKind : unsigned char {
#define SENET_ENUM(name, ...) name,
  SENET_ACTIVATIONS(SENET_ENUM)
#undef SENET_ENUM
};

struct Activation {
  ActivationKind kind = ActivationKind::identity;
  double arguments[4] = {};

  // Inlined at -O0 as well: a copy in an object for a wide ISA could be linked into code that runs without it.
  [[gnu::always_inline]] bool is_identity() const { return kind == ActivationKind::identity; }
  // Whether backward may read the value in the place of z: gradient(value(z), g) is gradient(z, g), and torch's own activation
  // keeps its value too, rounded to its type, so that nobody writes to it before backward. relu6 and leaky_relu also have the
  // first, but of those torch keeps z, and what they return may be written to.
  bool backward_reads_value() const { return kind == ActivationKind::relu; }
};

}  // namespace senet
