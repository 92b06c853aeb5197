#include "bindings/arguments.h"

#include <ATen/ops/empty_strided.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <string>
#include <utility>

namespace senet::bindings {
namespace {

constexpr double kRequired = std::numeric_limits<double>::infinity();

struct ActivationRow {
  std::string_view name;
  ActivationKind kind;
  int arguments;
  double optional;
};
constexpr ActivationRow kActivations[] = {
#define SENET_ROW(name, arguments, optional, value, gradient) {#name, ActivationKind::name, arguments, optional},
    SENET_ACTIVATIONS(SENET_ROW)
#undef SENET_ROW
};

std::string activation_names() {
  std::string names;
  for (const ActivationRow& row : kActivations) names += (names.empty() ? "" : ", ") + std::string(row.name);
  return names;
}

void check_weight(const Arguments& a, const Tensor& t, const char* name, at::ArrayRef<c10::SymInt> expected) {
  const auto sizes = t.sym_sizes();
  const bool matrix = expected.size() > 1;  // which may be that of a 1x1 convolution
  bool fits = matrix ? sizes.size() >= expected.size() : sizes.size() == expected.size();
  for (std::size_t i = 0; fits && i < sizes.size(); ++i)
    fits = sizes[i] == (i < expected.size() ? expected[i] : c10::SymInt(1));
  TORCH_CHECK_VALUE(fits, "squeeze_excite: ", name, " has shape ", sizes, "; expected ", expected,
                    matrix ? " (or with further axes of size 1)" : "");
  TORCH_CHECK_TYPE(t.scalar_type() == a.x.scalar_type() || t.scalar_type() == at::kFloat, "squeeze_excite: ", name, " is ",
                   t.scalar_type(), "; expected the dtype of x (", a.x.scalar_type(), ") or Float");
  TORCH_CHECK_TYPE(t.scalar_type() == a.fc1_weight.scalar_type(), "squeeze_excite: ", name, " is ", t.scalar_type(),
                   "; expected the dtype of fc1_weight (", a.fc1_weight.scalar_type(), ")");
  TORCH_CHECK_VALUE(t.device() == a.x.device(), "squeeze_excite: ", name, " is on ", t.device(), "; expected the device of x (",
                    a.x.device(), ")");
}
void check_weight(const Arguments& a, const OptionalTensor& t, const char* name, at::ArrayRef<c10::SymInt> expected) {
  if (t.has_value() && t->defined()) check_weight(a, *t, name, expected);
}

// t, where there is one, is of the shape, type and device of x.
void check_map(const Arguments& a, const char* name, const Tensor& t) {
  if (!t.defined()) return;
  TORCH_CHECK_VALUE(t.sym_sizes() == a.x.sym_sizes(), name, " has shape ", t.sym_sizes(), "; expected the shape of x ",
                    a.x.sym_sizes());
  TORCH_CHECK_TYPE(t.scalar_type() == a.x.scalar_type(), name, " is ", t.scalar_type(), "; expected the dtype of x (",
                   a.x.scalar_type(), ")");
  TORCH_CHECK_VALUE(t.device() == a.x.device(), name, " is on ", t.device(), "; expected the device of x (", a.x.device(), ")");
}

}  // namespace

std::int64_t gated_axis(const Tensor& x, OptionalDim given) {
  const std::int64_t dim = given.value_or(1);
  const std::int64_t axis = dim < 0 ? dim + x.dim() : dim;
  TORCH_CHECK_VALUE(axis >= 1 && axis < x.dim(), "squeeze_excite: dim is ", dim, "; expected an axis of x (", x.dim(),
                    "-D) other than 0, the batch");
  return axis;
}

Excitation parse_excitation(std::string_view name) {
  if (name == "two_fc") return Excitation::two_fc;
  if (name == "one_fc") return Excitation::one_fc;
  TORCH_CHECK_VALUE(name == "channel_conv", "squeeze_excite: excitation is '", name,
                    "'; expected two_fc, one_fc or channel_conv");
  return Excitation::channel_conv;
}

Activation parse_activation(std::string_view spec, const char* argument) {
  const std::size_t open = spec.find('(');
  const std::string_view name = spec.substr(0, open);
  const auto* row =
      std::find_if(std::begin(kActivations), std::end(kActivations), [&](const auto& r) { return r.name == name; });
  TORCH_CHECK_VALUE(row != std::end(kActivations), "squeeze_excite: ", argument, " is '", spec, "'; expected one of ",
                    activation_names());
  Activation activation{row->kind, {}};
  int given = 0;
  if (open != std::string_view::npos) {
    TORCH_CHECK_VALUE(spec.back() == ')', "squeeze_excite: ", argument, " is '", spec, "'; expected a closing parenthesis");
    std::string_view rest = spec.substr(open + 1, spec.size() - open - 2);
    while (true) {
      while (!rest.empty() && rest.front() == ' ') rest.remove_prefix(1);
      if (rest.size() > 1 && rest.front() == '+' && rest[1] != '-') rest.remove_prefix(1);
      double value = 0;
      const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), value);
      TORCH_CHECK_VALUE(error == std::errc() && std::isfinite(value), "squeeze_excite: ", argument, " is '", spec,
                        "'; the arguments in parentheses must be numbers");
      if (given < 4) activation.arguments[given] = value;
      ++given;
      rest.remove_prefix(static_cast<std::size_t>(end - rest.data()));
      while (!rest.empty() && rest.front() == ' ') rest.remove_prefix(1);
      if (rest.empty()) break;
      TORCH_CHECK_VALUE(rest.front() == ',', "squeeze_excite: ", argument, " is '", spec,
                        "'; the arguments in parentheses must be numbers separated by commas");
      rest.remove_prefix(1);
    }
  }
  if (given == 0 && row->arguments == 1 && row->optional != kRequired) {
    activation.arguments[0] = row->optional;
    given = 1;
  }
  TORCH_CHECK_VALUE(given == row->arguments, "squeeze_excite: ", argument, " is '", spec, "'; expected ", row->arguments,
                    " argument(s) for ", name);
  TORCH_CHECK_VALUE(row->kind != ActivationKind::affine_clamp || activation.arguments[2] <= activation.arguments[3],
                    "squeeze_excite: ", argument, " is '", spec, "'; expected lo <= hi in affine_clamp(a, b, lo, hi)");
  return activation;
}

void check_excitation(const Arguments& a, const c10::SymInt& K) {
  switch (parse_excitation(a.excitation)) {
    case Excitation::two_fc: {
      TORCH_CHECK_VALUE(a.fc2_weight.has_value() && a.fc2_weight->defined(),
                        "squeeze_excite: fc2_weight is None; expected [K, R] for excitation 'two_fc'");
      TORCH_CHECK_VALUE(a.fc1_weight.dim() >= 2 && a.fc1_weight.sym_size(0) != 0, "squeeze_excite: fc1_weight has shape ",
                        a.fc1_weight.sym_sizes(), "; expected [R, ", K, "] with R at least 1");
      const c10::SymInt R = a.fc1_weight.sym_size(0);
      check_weight(a, a.fc1_weight, "fc1_weight", {R, K});
      check_weight(a, a.fc1_bias, "fc1_bias", {R});
      check_weight(a, a.fc2_weight, "fc2_weight", {K, R});
      check_weight(a, a.fc2_bias, "fc2_bias", {K});
      break;
    }
    case Excitation::one_fc:
      check_weight(a, a.fc1_weight, "fc1_weight", {K, K});
      check_weight(a, a.fc1_bias, "fc1_bias", {K});
      break;
    case Excitation::channel_conv: {
      const auto sizes = a.fc1_weight.sym_sizes();
      const bool fits = sizes.size() == 1 || (sizes.size() == 3 && sizes[0] == 1 && sizes[1] == 1);
      TORCH_CHECK_VALUE(fits && sizes.back() % 2 == 1, "squeeze_excite: fc1_weight has shape ", sizes,
                        "; expected [k] or [1, 1, k] with odd k for excitation 'channel_conv'");
      check_weight(a, a.fc1_weight, "fc1_weight", sizes);
      check_weight(a, a.fc1_bias, "fc1_bias", {c10::SymInt(1)});
      break;
    }
  }
  if (a.excitation != "two_fc") {
    for (const auto& [t, name] : {std::pair{&a.fc2_weight, "fc2_weight"}, std::pair{&a.fc2_bias, "fc2_bias"}}) {
      TORCH_CHECK_VALUE(!t->has_value() || !(*t)->defined(), "squeeze_excite: ", name,
                        " was given; expected None for excitation '", a.excitation, "'");
    }
  }
  parse_activation(a.activation, "activation");
  parse_activation(a.gate, "gate");
  parse_activation(a.post_activation, "post_activation");
}

void check(const Arguments& a) {
  TORCH_CHECK_VALUE(a.x.dim() >= 2, "squeeze_excite: x has shape ", a.x.sym_sizes(),
                    "; expected [B, ..., K, ...], at least 2-D");
  const at::ScalarType type = a.x.scalar_type();
  TORCH_CHECK_TYPE(type == at::kFloat || type == at::kDouble || type == at::kBFloat16 || type == at::kHalf,
                   "squeeze_excite: x is ", type, "; expected Float, Double, BFloat16 or Half");
  const c10::SymInt K = a.x.sym_size(gated_axis(a.x, a.dim));
  TORCH_CHECK_VALUE(K != 0, "squeeze_excite: x has shape ", a.x.sym_sizes(), "; expected at least 1 channel along dim ",
                    a.dim.value_or(1));
  check_excitation(a, K);
  check_map(a, "squeeze_excite: residual", or_undefined(a.residual));
}

void check_backward(const Arguments& a, const OptionalTensor& y) {
  check(a);
  check_map(a, "squeeze_excite_backward: y", or_undefined(y));
  if (!or_undefined(y).defined()) return;
  TORCH_CHECK_VALUE(!or_undefined(a.residual).defined(),
                    "squeeze_excite_backward: y was given beside a residual; expected it in the residual's place");
  TORCH_CHECK_VALUE(parse_activation(a.post_activation, "post_activation").backward_reads_value(),
                    "squeeze_excite_backward: y was given with post_activation '", a.post_activation,
                    "'; expected 'relu', whose gradient follows from its value");
}

void check_pre(const Tensor& x, OptionalDim dim, const OptionalTensor& pre_scale, const OptionalTensor& pre_shift,
               std::string_view pre_activation) {
  const c10::SymInt K = x.sym_size(gated_axis(x, dim));
  for (const auto& [t, name] : {std::pair{&pre_scale, "pre_scale"}, std::pair{&pre_shift, "pre_shift"}}) {
    if (!t->has_value() || !(*t)->defined()) continue;
    TORCH_CHECK_VALUE((*t)->dim() == 1 && (*t)->sym_size(0) == K, "squeeze_excite: ", name, " has shape ", (*t)->sym_sizes(),
                      "; expected [", K, "]");
    TORCH_CHECK_TYPE((*t)->is_floating_point(), "squeeze_excite: ", name, " is ", (*t)->scalar_type(),
                     "; expected a floating-point tensor");
    TORCH_CHECK_VALUE((*t)->device() == x.device(), "squeeze_excite: ", name, " is on ", (*t)->device(),
                      "; expected the device of x (", x.device(), ")");
  }
  parse_activation(pre_activation, "pre_activation");
}

void check_prologue(const Arguments& a, const OptionalTensor& pre_scale, const OptionalTensor& pre_shift,
                    std::string_view pre_activation) {
  check(a);
  check_pre(a.x, a.dim, pre_scale, pre_shift, pre_activation);
}

void check_out(const Arguments& a, const Tensor& out) {
  TORCH_CHECK_VALUE(out.sym_sizes() == a.x.sym_sizes(), "squeeze_excite: out has shape ", out.sym_sizes(),
                    "; expected the shape of x ", a.x.sym_sizes());
  TORCH_CHECK_TYPE(out.scalar_type() == a.x.scalar_type(), "squeeze_excite: out is ", out.scalar_type(),
                   "; expected the dtype of x (", a.x.scalar_type(), ")");
  TORCH_CHECK_VALUE(out.device() == a.x.device(), "squeeze_excite: out is on ", out.device(), "; expected the device of x (",
                    a.x.device(), ")");
}

View view(const Tensor& x, std::int64_t axis) {
  // the axes within an image from innermost to outermost in memory; those of size 1 have no place and need none
  c10::SmallVector<std::int64_t, 6> order;
  for (std::int64_t d = x.dim() - 1; d > 0; --d) {
    if (x.size(d) != 1) order.push_back(d);
  }
  const bool empty = x.numel() == 0;
  if (!empty) {
    std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) { return x.stride(a) < x.stride(b); });
  }
  View v{x, 1, x.size(axis), 1};
  std::int64_t expected = 1;
  bool inside = true, dense = true;  // inside: not yet past the gated axis
  for (std::int64_t d : order) {
    dense = dense && (empty || x.stride(d) == expected);
    expected *= x.size(d);
    if (d == axis) {
      inside = false;
    } else {
      (inside ? v.I : v.O) *= x.size(d);
    }
  }
  if (dense) return v;
  TORCH_WARN_ONCE("squeeze_excite: the images of x (shape ", x.sizes(), ", strides ", x.strides(),
                  ") are not dense in memory; x is copied");
  return view(x.contiguous(), axis);
}

bool matches(const Tensor& t, const View& v, bool dense_batch) {
  for (std::int64_t d = 1; d < t.dim(); ++d) {
    if (t.size(d) != 1 && t.stride(d) != v.tensor.stride(d)) return false;
  }
  return !dense_batch || t.size(0) == 1 || t.stride(0) == v.O * v.K * v.I;
}

Tensor empty_dense(const View& v) {
  c10::SmallVector<std::int64_t, 6> strides(v.tensor.strides().begin(), v.tensor.strides().end());
  strides[0] = v.O * v.K * v.I;
  return at::empty_strided(v.tensor.sizes(), strides, v.tensor.options());
}

Tensor matching(const Tensor& t, const View& v, bool dense_batch) {
  return matches(t, v, dense_batch) ? t : empty_dense(v).copy_(t);
}

Dtype dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case at::kDouble:
      return Dtype::f64;
    case at::kBFloat16:
      return Dtype::bf16;
    case at::kHalf:
      return Dtype::f16;
    default:
      return Dtype::f32;
  }
}

at::ScalarType accumulate_type(const Tensor& x) { return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

Weights contiguous_weights(const Arguments& a) {
  const auto contiguous = [](const OptionalTensor& t) { return t.has_value() && t->defined() ? t->contiguous() : Tensor(); };
  return {a.fc1_weight.contiguous(), contiguous(a.fc1_bias), contiguous(a.fc2_weight), contiguous(a.fc2_bias)};
}

Params params_of(const Arguments& a, const View& x, const Weights& weights) {
  Params p;
  p.excitation = parse_excitation(a.excitation);
  const std::int64_t R = p.excitation == Excitation::one_fc   ? 0
                         : p.excitation == Excitation::two_fc ? a.fc1_weight.size(0)
                                                              : a.fc1_weight.numel();
  p.shape = {x.tensor.size(0), x.O, x.K, x.I, R};
  p.dtype = dtype_of(x.tensor);
  p.weight_dtype = dtype_of(a.fc1_weight);
  p.activation = parse_activation(a.activation, "activation");
  p.gate = parse_activation(a.gate, "gate");
  p.epilogue.add_one = a.add_one;
  p.epilogue.activation = parse_activation(a.post_activation, "post_activation");
  p.x = x.tensor.const_data_ptr();
  p.x_batch_stride = x.batch_stride();
  p.fc1_weight = weights.fc1_weight.const_data_ptr();
  p.fc2_weight = weights.fc2_weight.defined() ? weights.fc2_weight.const_data_ptr() : nullptr;
  return p;
}

c10::SymInt saved_width(const Arguments& a) {
  const c10::SymInt K = a.x.sym_size(gated_axis(a.x, a.dim));
  return a.excitation == "two_fc" ? K * 2 + a.fc1_weight.sym_size(0) : K * 2;
}

}  // namespace senet::bindings
