// Squeeze-and-Excitation forward and backward in double, written with nothing of the kernels' but the structs.
#pragma once
#include "testing.h"

namespace {

// ---- activations, by formulas that do not cancel ----

double sigmoid(double z) { return 1 / (1 + std::exp(-z)); }
double sigmoid_slope(double z) {
  const double e = std::exp(-std::abs(z));
  return e / ((1 + e) * (1 + e));
}
double cdf(double z) { return 0.5 * std::erfc(-z / std::numbers::sqrt2); }
double pdf(double z) { return std::exp(-0.5 * z * z) / std::sqrt(2 * std::numbers::pi); }
double inner2(double z) { return 2 * std::sqrt(2 / std::numbers::pi) * (z + 0.044715 * z * z * z); }
double inner2_slope(double z) { return 2 * std::sqrt(2 / std::numbers::pi) * (1 + 0.134145 * z * z); }
double softplus(double z) { return std::max(z, 0.0) + std::log1p(std::exp(-std::abs(z))); }
double limit(double z, double lo, double hi) { return std::isnan(z) ? z : std::min(std::max(z, lo), hi); }
double times(double zero_wins, double factor) { return zero_wins == 0 ? 0 : zero_wins * factor; }

struct Row {
  const char* name;
  double arguments[4];
  enum { kExact, kCancels } trait;  // kCancels: the error of the value is relative to z
  double (*value)(double z, const double* p);
  double (*slope)(double z, const double* p);  // at a kink: torch's
};
#define LAMBDA(expression) [](double z, [[maybe_unused]] const double* p) -> double { return expression; }
const Row kRows[] = {
    {"identity", {}, Row::kExact, LAMBDA(z), LAMBDA((void(z), 1))},
    {"relu", {}, Row::kExact, LAMBDA(z <= 0 ? 0 : z), LAMBDA(z <= 0 ? 0 : 1)},
    {"relu6", {}, Row::kExact, LAMBDA(limit(z, 0, 6)), LAMBDA(z > 0 && z < 6)},
    {"leaky_relu", {0.2}, Row::kExact, LAMBDA(z > 0 ? z : p[0] * z), LAMBDA(z > 0 ? 1 : p[0])},
    {"sigmoid", {}, Row::kExact, LAMBDA(sigmoid(z)), LAMBDA(sigmoid_slope(z))},
    {"hardsigmoid", {}, Row::kExact, LAMBDA(limit(z + 3, 0, 6) / 6), LAMBDA(z > -3 && z < 3 ? 1.0 / 6 : 0)},
    {"tanh", {}, Row::kExact, LAMBDA(std::tanh(z)), LAMBDA(1 / (std::cosh(z) * std::cosh(z)))},
    {"silu", {}, Row::kExact, LAMBDA(z * sigmoid(z)), LAMBDA(sigmoid(z) + z * sigmoid_slope(z))},
    {"hardswish",
     {},
     Row::kExact,
     LAMBDA(z * (limit(z + 3, 0, 6) / 6)),
     LAMBDA(z <= -3  ? 0
            : z >= 3 ? 1
                     : (2 * z + 3) / 6)},
    {"gelu", {}, Row::kCancels, LAMBDA(z * cdf(z)), LAMBDA(cdf(z) + z * pdf(z))},
    {"gelu_tanh",
     {},
     Row::kCancels,
     LAMBDA(z * sigmoid(inner2(z))),
     LAMBDA(sigmoid(inner2(z)) + times(z * sigmoid_slope(inner2(z)), inner2_slope(z)))},
    {"mish",
     {},
     Row::kExact,
     LAMBDA(z * std::tanh(softplus(z))),
     LAMBDA(std::tanh(softplus(z)) + z * sigmoid(z) / std::pow(std::cosh(softplus(z)), 2))},
    {"affine_clamp",
     {0.25, 0.5, -0.125, 1},
     Row::kExact,
     LAMBDA(limit(p[0] * z + p[1], p[2], p[3])),
     LAMBDA(p[0] * z + p[1] >= p[2] && p[0] * z + p[1] <= p[3] ? p[0] : 0)},
};
#undef LAMBDA
#define COUNT(...) +1
constexpr int kRowCount = 0 SENET_ACTIVATIONS(COUNT);
#undef COUNT
static_assert(std::size(kRows) == kRowCount, "a row of activations.h has no reference here");

Activation row(int kind) {
  Activation activation{.kind = static_cast<ActivationKind>(kind)};
  std::copy_n(kRows[kind].arguments, 4, activation.arguments);
  return activation;
}
double value(const Activation& a, double z) { return kRows[int(a.kind)].value(z, a.arguments); }
double slope(const Activation& a, double z) { return kRows[int(a.kind)].slope(z, a.arguments); }

// ---- the whole operation ----

struct Case {
  Shape shape;
  Excitation excitation = Excitation::two_fc;
  Dtype dtype = Dtype::f64, weight_dtype = Dtype::f64;
  Activation activation, gate, post;
  bool add_one = false, residual = false, bias1 = true, bias2 = true;
  bool from_y = false;         // backward is given y, not the residual
  int64_t gap = 0;             // elements between two images
  unsigned gradients = ~0u;    // bit t: gradient t of Tensor is asked for
  int64_t rows_per_block = 0;  // 0: the plan's

  bool two_fc() const { return excitation == Excitation::two_fc; }
  Dtype sum_dtype() const { return dtype == Dtype::f64 ? Dtype::f64 : Dtype::f32; }
  std::string name() const {
    constexpr const char *excitations[] = {"two_fc", "one_fc", "channel_conv"}, *dtypes[] = {"f32", "f64", "bf16", "f16"};
    char line[300];
    std::snprintf(
        line, sizeof line,
        "%s [B %d O %d K %d I %d R %d] %s/%s act %s gate %s post %s add_one %d residual %d%s biases %d%d gap %d grads %x",
        excitations[int(excitation)], int(shape.B), int(shape.O), int(shape.K), int(shape.I), int(shape.R), dtypes[int(dtype)],
        dtypes[int(weight_dtype)], kRows[int(activation.kind)].name, kRows[int(gate.kind)].name, kRows[int(post.kind)].name,
        add_one, residual, from_y ? " from y" : "", bias1, bias2, int(gap), gradients);
    return line;
  }
};

enum InputName { X, RESIDUAL, W1, B1, W2, B2, GRAD_Y, kInputs };
enum Tensor { Y, SAVED, DX, DRESIDUAL, DW1, DB1, DW2, DB2, kTensors };
constexpr const char* kTensorNames[] = {
    "y", "saved", "grad_x", "grad_residual", "grad_fc1_weight", "grad_fc1_bias", "grad_fc2_weight", "grad_fc2_bias"};
using Inputs = std::array<Doubles, kInputs>;
using Results = std::array<Doubles, kTensors>;

double rounded(double v, Dtype dtype) {
  char item[8];
  put(v, dtype, item);
  return get(item, dtype);
}

Inputs random_inputs(const Case& c, unsigned seed) {
  std::mt19937 random(seed);
  const auto& [B, O, K, I, R] = c.shape;
  const auto fill = [&](int64_t n, double lo, double hi, Dtype dtype) {
    Doubles values(static_cast<std::size_t>(n));
    for (double& v : values) v = rounded(lo + (hi - lo) * (random() / 4294967296.0), dtype);  // what the kernels will see
    return values;
  };
  const int64_t n = B * O * K * I, fan_in = c.excitation == Excitation::channel_conv ? R : K;
  const double w1 = 3 / std::sqrt(fan_in), w2 = 3 / std::sqrt(R + 1);
  Inputs in;
  in[X] = fill(n, -1, 2, c.dtype);
  in[RESIDUAL] = fill(n, -1.5, 1.5, c.dtype);
  in[GRAD_Y] = fill(n, -1, 1.25, c.dtype);
  in[W1] = fill(c.two_fc() ? R * K : c.excitation == Excitation::one_fc ? K * K : R, -w1, w1, c.weight_dtype);
  in[B1] = fill(c.two_fc() ? R : c.excitation == Excitation::one_fc ? K : 1, -0.5, 0.75, c.weight_dtype);
  in[W2] = fill(c.two_fc() ? K * R : 0, -w2, w2, c.weight_dtype);
  in[B2] = fill(c.two_fc() ? K : 0, -0.5, 0.75, c.weight_dtype);
  return in;
}

struct PrologueNumbers {
  Doubles scale, shift;  // one a channel, or none
  Activation activation;
};

// u, rounded to the type of x at each step that rounds
Doubles behind(const PrologueNumbers& pre, const Case& c, const Doubles& x) {
  Doubles u(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    const std::size_t k = int64_t(i) / c.shape.I % c.shape.K;
    double v = x[i] * (pre.scale.empty() ? 1 : pre.scale[k]) + (pre.shift.empty() ? 0 : pre.shift[k]);
    u[i] = rounded(value(pre.activation, v), c.dtype);
  }
  return u;
}

PrologueNumbers random_prologue(const Case& c, unsigned seed) {
  PrologueNumbers pre;
  std::mt19937 random(seed);
  for (int64_t k = 0; k < c.shape.K; ++k) {  // sums of a few bits: no rounding that a fused multiply-add would leave out
    pre.scale.push_back(1 + int(random() % 3) * 0.25);
    pre.shift.push_back(int(random() % 5) * 0.25 - 0.5);
  }
  if (seed % 3 == 0) pre.scale.clear();
  if (seed % 5 == 0) pre.shift.clear();
  pre.activation = row(seed % 2 ? int(ActivationKind::relu) : int(ActivationKind::identity));
  return pre;
}

// What forward and backward share; images of x and of the residual stand `gap` elements apart.
Params params_of(const Case& c, const Input& x, const Input& residual, const Input& w1, const Input& w2, void* saved) {
  const int64_t stride = c.shape.O * c.shape.K * c.shape.I + c.gap;
  return {.shape = c.shape,
          .dtype = c.dtype,
          .weight_dtype = c.weight_dtype,
          .excitation = c.excitation,
          .activation = c.activation,
          .gate = c.gate,
          .epilogue = {c.add_one, c.residual ? residual.data : nullptr, stride, c.post},
          .x = x.data,
          .x_batch_stride = stride,
          .fc1_weight = w1.data,
          .fc2_weight = c.two_fc() ? w2.data : nullptr,
          .saved = saved};
}

// Forward and backward, all excitations as matrices: the convolution's is banded.
Results naive(const Case& c, const Inputs& in) {
  const auto [B, O, K, I, R] = c.shape;
  const bool conv = c.excitation == Excitation::channel_conv;
  const int64_t hidden = c.two_fc() ? R : 0, first = c.two_fc() ? R : K;  // first: outputs of the first layer
  const auto weight = [&](int64_t n, int64_t m) { return conv ? m - n + R / 2 : n * K + m; };  // index in W1, if in range
  const auto inside = [&](int64_t n, int64_t m) { return !conv || (weight(n, m) >= 0 && weight(n, m) < R); };
  Results out;
  for (const auto& [tensor, like] : {std::pair{Y, X}, {DX, X}, {DRESIDUAL, X}, {DW1, W1}, {DB1, B1}, {DW2, W2}, {DB2, B2}}) {
    out[tensor].assign(in[like].size(), 0);
  }
  for (int64_t b = 0; b < B; ++b) {
    Doubles squeezed(K), z1(first), h(first), z2(K), dz2(K), dz1(first);
    const auto each = [&](auto body) {  // body(channel, index)
      for (int64_t i = 0; i < O * K * I; ++i) body(i / I % K, b * O * K * I + i);
    };
    each([&](int64_t k, int64_t i) { squeezed[k] += in[X][i] / double(O * I); });
    for (int64_t n = 0; n < first; ++n) {
      z1[n] = c.bias1 ? in[B1][conv ? 0 : n] : 0;
      for (int64_t m = 0; m < K; ++m) z1[n] += inside(n, m) ? in[W1][weight(n, m)] * squeezed[m] : 0;
      h[n] = value(c.activation, z1[n]);
    }
    for (int64_t k = 0; k < K; ++k) {
      z2[k] = !c.two_fc() ? z1[k] : c.bias2 ? in[B2][k] : 0;
      for (int64_t r = 0; r < hidden; ++r) z2[k] += in[W2][k * R + r] * h[r];
    }
    each([&](int64_t k, int64_t i) {
      const double v = in[X][i] * (value(c.gate, z2[k]) + c.add_one) + (c.residual ? in[RESIDUAL][i] : 0);
      out[Y][i] = value(c.post, v);
      out[DRESIDUAL][i] = in[GRAD_Y][i] * slope(c.post, c.from_y ? rounded(out[Y][i], c.dtype) : v);
      dz2[k] += out[DRESIDUAL][i] * in[X][i] * slope(c.gate, z2[k]);
    });
    if (!c.two_fc()) dz1 = dz2;
    for (int64_t k = 0; k < K && c.two_fc(); ++k) {
      out[DB2][k] += dz2[k];
      for (int64_t r = 0; r < R; ++r) {
        out[DW2][k * R + r] += dz2[k] * h[r];
        dz1[r] += dz2[k] * in[W2][k * R + r] * slope(c.activation, z1[r]);
      }
    }
    Doubles dsqueezed(K);
    for (int64_t n = 0; n < first; ++n) {
      out[DB1][conv ? 0 : n] += dz1[n];
      for (int64_t m = 0; m < K; ++m) {
        if (!inside(n, m)) continue;
        out[DW1][weight(n, m)] += dz1[n] * squeezed[m];
        dsqueezed[m] += dz1[n] * in[W1][weight(n, m)];
      }
    }
    each([&](int64_t k, int64_t i) {
      out[DX][i] = out[DRESIDUAL][i] * (value(c.gate, z2[k]) + c.add_one) + dsqueezed[k] / double(O * I);
    });
    out[SAVED].insert(out[SAVED].end(), squeezed.begin(), squeezed.end());
    if (c.two_fc()) out[SAVED].insert(out[SAVED].end(), z1.begin(), z1.end());
    out[SAVED].insert(out[SAVED].end(), z2.begin(), z2.end());
  }
  return out;
}

// ---- comparison ----

// Rounded once to its type, a result may be off by half a unit in the last place of the number, and by some noise of the
// sums, which is relative to the tensor's largest number. grad_x reads grad_residual back: there its roundings count too.
void compare(const std::string& where, Tensor t, const Case& c, const Output& out, const Doubles& want, double noise) {
  check(out.guarded(), "%s: wrote outside %s", where.c_str(), kTensorNames[t]);
  const bool activated = !c.post.is_identity(), written = t == DRESIDUAL ? activated : t < DX || (c.gradients >> t & 1);
  if (!written) return check(out.untouched(), "%s: %s was not asked for, but written", where.c_str(), kTensorNames[t]);
  const Doubles got = out.values();
  double largest = 0, worst = -1;
  for (const double v : want) largest = std::max(largest, std::abs(v));
  const double unit = std::ldexp(1.01, -1 - format(out.dtype).mantissa), denormal = out.dtype == Dtype::f16 ? 0x1p-25 : 1e-300;
  const double everywhere = largest * (noise + (t == DX && activated ? unit : 0)) + denormal;
  std::size_t index = 0;
  for (std::size_t i = 0; i < want.size() && !std::isnan(worst); ++i) {
    const double error = std::abs(got[i] - want[i]) / (std::abs(want[i]) * unit + everywhere);
    if (!(error <= worst)) worst = error, index = i;
  }
  if (want.empty()) return;
  check(worst <= 1, "%s: %s[%zu] is %.17g, expected %.17g (%.3g times the tolerance)", where.c_str(), kTensorNames[t], index,
        got[index], want[index], worst);
}

}  // namespace
