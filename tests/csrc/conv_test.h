// The 1x1 convolution with a gate against a naive one in double.
#pragma once
#include "naive.h"
#include "se/cpu/conv.h"

namespace {

struct ConvCase {
  int64_t B, P, C_in, C_out, R;
  bool by_pixels, gates_output;
  Excitation excitation = Excitation::two_fc;
  Dtype dtype = Dtype::f32, weight_dtype = Dtype::f32;
  Activation activation, gate, post;
  bool add_one = false, residual = false, biases = true, prologue = false;
  int64_t gap = 0;  // elements between two images of x and of the residual

  int64_t gated() const { return gates_output ? C_out : C_in; }
  int64_t first() const { return excitation == Excitation::two_fc ? R : gated(); }  // outputs of the first layer
  std::string name() const {
    char line[200];
    std::snprintf(line, sizeof line,
                  "conv [B %d P %d %d->%d R %d] %s %s excitation %d dtype %d weights %d post %s residual %d prologue %d",
                  int(B), int(P), int(C_in), int(C_out), int(R), by_pixels ? "by pixels" : "by channels",
                  gates_output ? "output" : "input", int(excitation), int(dtype), int(weight_dtype), kRows[int(post.kind)].name,
                  residual, prologue);
    return line;
  }
};

struct ConvInputs {
  Doubles x, residual;   // [B][P][C] or [B][C][P]
  Doubles weight;        // [C_out][C_in]
  Doubles scale, shift;  // [C_out]
  Doubles w1, b1, w2, b2;
  Doubles pre_scale, pre_shift;  // [C_in], such that x * pre_scale is exact and the sum rounds once
};

ConvInputs conv_inputs(const ConvCase& c, unsigned seed) {
  std::mt19937 random(seed);
  const auto fill = [&](int64_t n, double size, Dtype dtype) {
    Doubles values(static_cast<std::size_t>(n));
    for (double& v : values) v = rounded(size * (random() / 2147483648.0 - 0.9), dtype);
    return values;
  };
  Doubles pre_scale, pre_shift;
  for (int64_t k = 0; k < c.C_in; ++k) {
    pre_scale.push_back(0.5 * (1 + random() % 2));
    pre_shift.push_back((int(random() % 5) - 2) / 8.0);
  }
  const bool taps = c.excitation == Excitation::channel_conv;
  const double w1 = 3 / std::sqrt(taps ? c.R : c.C_in), w2 = 3 / std::sqrt(c.R + 1);
  const Dtype first = c.gates_output ? Dtype::f32 : c.weight_dtype;
  return {fill(c.B * c.P * c.C_in, 1.5, c.dtype),
          fill(c.B * c.P * c.C_out, 1, c.dtype),
          fill(c.C_out * c.C_in, 2 / std::sqrt(c.C_in), c.dtype),
          fill(c.C_out, 1, Dtype::f32),
          fill(c.C_out, 1, Dtype::f32),
          fill(taps ? c.R : c.first() * c.C_in, w1, first),
          fill(taps ? 1 : c.first(), 0.5, first),
          fill(c.excitation == Excitation::two_fc ? c.gated() * c.R : 0, w2, c.weight_dtype),
          fill(c.excitation == Excitation::two_fc ? c.gated() : 0, 0.5, c.weight_dtype),
          pre_scale,
          pre_shift};
}

// multiplied: the type to which the gated x is rounded where it is not float32's.
Doubles naive_conv(const ConvCase& c, const ConvInputs& in, Dtype multiplied) {
  Doubles y(in.residual.size());
  const auto at = [&](int64_t b, int64_t p, int64_t k, int64_t K) {
    return b * c.P * K + (c.by_pixels ? p * K + k : k * c.P + p);
  };
  const auto u = [&](int64_t b, int64_t p, int64_t k) {
    const double x = in.x[at(b, p, k, c.C_in)];
    return c.prologue ? rounded(std::max(0.0, x * in.pre_scale[k] + in.pre_shift[k]), c.dtype) : x;
  };
  for (int64_t b = 0; b < c.B; ++b) {
    Doubles squeezed(c.C_in), h(c.first()), s(c.gated());
    for (int64_t k = 0; k < c.C_in; ++k)
      for (int64_t p = 0; p < c.P; ++p) squeezed[k] += u(b, p, k) / double(c.P);
    for (int64_t n = 0; n < c.first(); ++n) {
      const bool taps = c.excitation == Excitation::channel_conv;
      h[n] = c.biases ? in.b1[taps ? 0 : n] : 0;
      for (int64_t k = 0; k < c.C_in; ++k) {
        const int64_t tap = k - n + c.R / 2;
        if (!taps) h[n] += in.w1[n * c.C_in + k] * squeezed[k];
        if (taps && tap >= 0 && tap < c.R) h[n] += in.w1[tap] * squeezed[k];
      }
      if (c.excitation == Excitation::two_fc) h[n] = value(c.activation, h[n]);
    }
    for (int64_t n = 0; n < c.gated(); ++n) {
      double z = c.excitation == Excitation::two_fc ? (c.biases ? in.b2[n] : 0) : h[n];
      for (int64_t r = 0; r < c.R && c.excitation == Excitation::two_fc; ++r) z += in.w2[n * c.R + r] * h[r];
      s[n] = value(c.gate, z) + c.add_one;
    }
    for (int64_t p = 0; p < c.P; ++p) {
      for (int64_t n = 0; n < c.C_out; ++n) {
        double sum = 0;
        for (int64_t k = 0; k < c.C_in; ++k) {
          sum += in.weight[n * c.C_in + k] * rounded(u(b, p, k) * (c.gates_output ? 1 : s[k]), multiplied);
        }
        const double v = (sum * in.scale[n] + in.shift[n]) * (c.gates_output ? s[n] : 1);
        const int64_t to = at(b, p, n, c.C_out);
        y[to] = value(c.post, v + (c.residual ? in.residual[to] : 0));
      }
    }
  }
  return y;
}

// As product.inl orders it: by pixels [C_out / 16][C_in / group][16][group], else [C_out][C_in], zeros up to whole steps.
Doubles packed(const ConvCase& c, const Doubles& weight, const ProductKernels& product) {
  const int64_t group = product.group(), whole = product.steps(c.C_in) * product.per_step;
  Doubles all(static_cast<std::size_t>((c.by_pixels ? (c.C_out + 15) / 16 * 16 : c.C_out) * whole));
  for (int64_t n = 0; n < c.C_out; ++n) {
    for (int64_t k = 0; k < c.C_in; ++k) {
      const int64_t panel = ((n / 16 * whole / group + k / group) * 16 + n % 16) * group + k % group;
      all[c.by_pixels ? panel : n * whole + k] = weight[n * c.C_in + k];
    }
  }
  return all;
}

struct ConvCut {
  int64_t threads, images, pixels, across, channels, tiles_a_pass;
  bool stream;
};

Output run_conv(const ConvCase& c, const ConvInputs& in, const Kernels& kernels, const ConvCut& cut) {
  const auto spread = [&](const Doubles& images) {
    Doubles all;
    const auto image = static_cast<std::ptrdiff_t>(images.size()) / c.B;
    for (int64_t b = 0; b < c.B; ++b) {
      if (b > 0) all.insert(all.end(), static_cast<std::size_t>(c.gap), kNaN);
      all.insert(all.end(), images.begin() + b * image, images.begin() + (b + 1) * image);
    }
    return all;
  };
  const ProductKernels& product = kernels.product(c.dtype);
  const Dtype first = c.gates_output ? Dtype::f32 : c.weight_dtype;
  const Input x(spread(in.x), c.dtype), residual(spread(in.residual), c.dtype);
  const Input weight(packed(c, in.weight, product), product.multiplied), scale(in.scale, Dtype::f32),
      shift(in.shift, Dtype::f32), w1(in.w1, first), b1(in.b1, first), w2(in.w2, c.weight_dtype), b2(in.b2, c.weight_dtype),
      pre_scale(in.pre_scale, Dtype::f32), pre_shift(in.pre_shift, Dtype::f32);
  Output y(in.residual.size(), c.dtype, 1);
  ConvParams p;
  p.shape = {c.B, c.by_pixels ? c.P : 1, c.C_in, c.by_pixels ? 1 : c.P, c.excitation == Excitation::one_fc ? 0 : c.R};
  p.dtype = c.dtype, p.weight_dtype = c.weight_dtype, p.fc1_dtype = first;
  p.excitation = c.excitation;
  p.activation = c.activation, p.gate = c.gate;
  p.epilogue = {c.add_one, c.residual ? residual.data : nullptr, c.P * c.C_out + c.gap, c.post};
  p.x = x.data, p.x_batch_stride = c.P * c.C_in + c.gap;
  if (c.prologue) p.prologue = {pre_scale.data, pre_shift.data, row(int(ActivationKind::relu))};
  p.C_out = c.C_out, p.gates_output = c.gates_output, p.by_pixels = c.by_pixels;
  p.weight = weight.data;
  p.scale = reinterpret_cast<const float*>(scale.data), p.shift = reinterpret_cast<const float*>(shift.data);
  p.fc1_weight = w1.data, p.fc2_weight = w2.data;
  if (c.biases) p.fc1_bias = b1.data, p.fc2_bias = b2.data;
  p.y = y.data();
  ConvPlan plan = plan_conv(p, product, Machine());
  plan.threads = cut.threads, plan.images_per_tile = cut.images;
  plan.across = cut.across, plan.channels = cut.channels, plan.tiles_a_pass = cut.tiles_a_pass, plan.stream = cut.stream;
  plan.cut(cut.pixels, p, product);
  conv(p, kernels, plan, run_team);
  return y;
}

void test_conv() {
  struct Sizes {
    int64_t B, P, C_in, C_out, R;
  };
  constexpr Sizes sizes[] = {{3, 49, 17, 70, 5},   {1, 130, 40, 16, 3}, {2, 9, 1, 1, 1},  {3, 1, 33, 24, 5},
                             {2, 67, 130, 130, 7}, {5, 16, 6, 33, 3},   {1, 5, 3, 200, 9}};
  std::mt19937 random(11);
  unsigned seed = 100;
  for (const Sizes& size : sizes) {
    for (int kind = 0; kind < 24; ++kind) {
      ConvCase c{size.B, size.P, size.C_in, size.C_out, size.R, kind % 2 == 0, kind / 2 % 2 == 1};
      constexpr Dtype dtypes[] = {Dtype::f32, Dtype::bf16, Dtype::f16};
      c.dtype = dtypes[kind % 3];
      c.weight_dtype = kind % 4 < 2 ? c.dtype : Dtype::f32;
      c.excitation = Excitation(kind / 4 % 3);
      if (c.gates_output && c.excitation == Excitation::channel_conv) c.excitation = Excitation::one_fc;
      c.activation = row(int(random() % kRowCount));
      c.gate = row(kind % 5 ? int(ActivationKind::sigmoid) : int(random() % kRowCount));
      c.post = row(kind % 3 ? int(ActivationKind::relu) : int(random() % kRowCount));
      c.add_one = random() % 2, c.residual = random() % 2, c.biases = random() % 3 != 0, c.prologue = random() % 2;
      c.gap = random() % 2 ? 0 : 1 + random() % 9;
      const ConvInputs in = conv_inputs(c, ++seed);
      std::vector<Output> first[4];  // those with the same bits: all with fused multiply-adds, but pairs and tiles of bfloat16
      for_isas([&](const Kernels& kernels) {
        const Dtype multiplied = kernels.product(c.dtype).multiplied;
        const bool baseline = std::strcmp(kernels.name, "baseline") == 0, pairs = multiplied == Dtype::bf16;
        std::vector<Output>& same = first[baseline ? 0 : !pairs ? 1 : kernels.product(c.dtype).per_step == 2 ? 2 : 3];
        const Doubles want = naive_conv(c, in, pairs && !c.gates_output ? Dtype::bf16 : Dtype::f64);
        for (const ConvCut& cut :
             {ConvCut{1, c.B, 64, 1, 256, 1, false}, {3, 2, 16, 1, 64, 3, true}, {4, 1, 5, 2, 128, 2, false}}) {
          const Output y = run_conv(c, in, kernels, cut);
          const std::string where = c.name() + " on " + kernels.name + ", " + std::to_string(cut.threads) + " threads";
          Case as;  // for compare()
          as.dtype = c.dtype;
          // where the gated x is rounded to bfloat16, its gate's last bits decide on which side
          compare(where, Y, as, y, want, pairs && !c.gates_output ? 4e-3 : 8e-6);
          if (same.empty()) same.push_back(y);
          check(y.bytes == same[0].bytes, "%s: other bits than with one thread", where.c_str());
        }
      });
    }
  }
}

}  // namespace
