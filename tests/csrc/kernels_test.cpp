// The CPU kernels of every ISA supported here against the naive implementation. A plain program, so that it runs under any
// sanitizer and emulator; exits 1 on a failure.
#include "conv_test.h"
#include "naive.h"
#include "norm.h"

namespace {

// ---- activations ----

template <class A>
void test_activation(const char* isa, int kind, const ActivationKernels<A>& kernel) {
  using Limits = std::numeric_limits<A>;
  Doubles grid = {0,   3,   6,    2,    -2.5, 20,    45,        85,    88.5, 104,           700,           745,
                  1e4, 1e9, 1e18, 1e20, 1e-5, 1e-20, 0.6249999, 0.625, kInf, Limits::max(), Limits::min(), Limits::denorm_min(),
                  kNaN};
  for (double z = 0.0103; z < 30; z += 0.0371) grid.push_back(z);
  for (std::size_t i = grid.size(); i-- > 0;) grid.push_back(-grid[i]);
  const Row& r = kRows[kind];
  const auto n = static_cast<int64_t>(grid.size());
  const double epsilon = Limits::epsilon(), tiny = 100 * Limits::min();
  std::vector<A> z(grid.begin(), grid.end()), values(z), pieces(z), grads(z), slopes(z), slopes_over_z(z), of_value(z);
  for (std::size_t i = 0; i < z.size(); ++i) slopes[i] = grads[i] = A(1 + 0.25 * double(i % 5));
  kernel.value(row(kind), values.data(), values.data(), n);  // in place, in each of the ways the kernels do that
  kernel.grad(row(kind), z.data(), slopes.data(), slopes.data(), n);
  kernel.grad(row(kind), slopes_over_z.data(), grads.data(), slopes_over_z.data(), n);
  kernel.grad(row(kind), values.data(), grads.data(), of_value.data(), n);
  for (int64_t i = 0; i < n; i += 7) kernel.value(row(kind), &z[size_t(i)], &pieces[size_t(i)], std::min<int64_t>(7, n - i));
  check(std::memcmp(slopes.data(), slopes_over_z.data(), sizeof(A) * z.size()) == 0, "%s %s': written over z it differs", isa,
        r.name);
  for (std::size_t i = 0; i < z.size(); ++i) {
    const double want = r.value(z[i], r.arguments), want_slope = r.slope(z[i], r.arguments) * grads[i],
                 size = std::abs(double(z[i]));
    const double scale = std::isfinite(want) ? std::abs(want) + (r.trait == Row::kExact ? 0 : std::min(size, 10.0)) : 0;
    const auto close = [&](A got) { return std::abs(want - got) <= 6 * epsilon * scale + tiny; };
    check(std::isnan(want) ? std::isnan(values[i]) : want == values[i] || close(values[i]),
          "%s %s(%g), %zu bytes: %.17g, expected %.17g", isa, r.name, double(z[i]), sizeof(A), double(values[i]), want);
    check(std::isnan(want) ? std::isnan(pieces[i]) : pieces[i] == values[i],
          "%s %s(%g), %zu bytes: alone %.17g, in a row %.17g", isa, r.name, double(z[i]), sizeof(A), double(pieces[i]),
          double(values[i]));
    if (row(kind).backward_reads_value()) {
      check(std::memcmp(&slopes[i], &of_value[i], sizeof(A)) == 0, "%s %s'(%g) is %.17g, at its value %.17g", isa, r.name,
            double(z[i]), double(slopes[i]), double(of_value[i]));
    }
    if (std::isnan(want_slope) || std::isnan(z[i])) continue;  // 0 * Inf at an end
    check(std::abs(want_slope - slopes[i]) <= 6 * epsilon * (1 + std::min(size, 20.0)),
          "%s %s'(%g) * %g, %zu bytes: %.17g, expected %.17g", isa, r.name, double(z[i]), double(grads[i]), sizeof(A),
          double(slopes[i]), want_slope);
  }
}

void test_activations() {
  for_isas([](const Kernels& k) {
    for (int kind = 0; kind < kRowCount; ++kind) {
      test_activation(k.name, kind, k.activation_f32);
      test_activation(k.name, kind, k.activation_f64);
    }
  });
}

// ---- conversions ----

void test_conversions() {
  std::mt19937 random(1);
  for (const Dtype dtype : {Dtype::bf16, Dtype::f16}) {
    const Format f = format(dtype);
    std::vector<unsigned short> halves(65536);
    std::vector<float> wide(65536), floats;
    for (const unsigned nan : {0x7F800001u, 0x7FFFFFFFu, 0xFF800001u, 0xFFFFFFFFu, 0x7F80FFFFu})
      floats.push_back(std::bit_cast<float>(nan));
    for (unsigned i = 0; i < 65536; ++i) {
      halves[i] = static_cast<unsigned short>(i);
      const unsigned above = (i & 0x7FFF) + 1;  // towards infinity, in whose place stands the number that would come next
      const double next = above == f.infinity() ? std::ldexp(1.0, f.bias() + 1) : decode(above, f);
      const auto tie = float((decode(i & 0x7FFF, f) + next) / (i >> 15 ? -2 : 2)),
                 any = std::bit_cast<float>(unsigned(random()));
      floats.insert(floats.end(), {float(decode(i, f)), tie, std::nextafter(tie, 0.0f), std::nextafter(tie, 2 * tie), any});
    }
    for_isas([&](const Kernels& kernels) {
      const WeightKernels<float>& k = dtype == Dtype::f16 ? kernels.weight_f16 : kernels.weight_bf16;
      k.read(halves.data(), wide.data(), 65536);
      for (unsigned i = 0; i < 65536; ++i) {
        const auto want = float(decode(i, f));
        check(std::isnan(want) ? std::isnan(wide[i]) && std::signbit(wide[i]) == (i >> 15)
                               : std::bit_cast<unsigned>(wide[i]) == std::bit_cast<unsigned>(want),
              "%s reads 0x%04x, %d mantissa bits, as %.9g, expected %.9g", kernels.name, i, f.mantissa, wide[i], want);
      }
      Output out(floats.size(), dtype);
      k.write(floats.data(), out.data(), static_cast<int64_t>(floats.size()));
      check(out.guarded(), "%s: a conversion wrote outside", kernels.name);
      for (std::size_t i = 0; i < floats.size(); ++i) {
        unsigned short got;
        std::memcpy(&got, &out.bytes[Output::kGuard + 2 * i], 2);
        const unsigned want = encode(floats[i], f);
        check(std::isnan(floats[i]) ? std::isnan(decode(got, f)) : got == want,
              "%s writes %a with %d mantissa bits as 0x%04x, expected 0x%04x", kernels.name, floats[i], f.mantissa, got, want);
      }
    });
  }
}

// ---- the whole operation ----

// How a call is cut, in the test's hands: whatever it is, the bits must not change.
struct Cut {
  int64_t tile;
  int threads;
  bool stream;
  enum { kFresh, kX, kResidual } y = kFresh;  // what y is
  bool overlap = false;

  std::string name() const {
    return "tile " + std::to_string(tile) + ", threads " + std::to_string(threads) + (stream ? ", streamed" : "") +
           (overlap ? ", overlapped" : "") +
           (y == kX          ? ", y is x"
            : y == kResidual ? ", y is the residual"
                             : "");
  }
};

// Forward and backward; with a prologue forward alone.
std::vector<Output> run(const Case& c, const Inputs& in, const Results& want, const Kernels& kernels, const Cut& cut,
                        const PrologueNumbers& pre = {}) {
  const int64_t image = c.shape.O * c.shape.K * c.shape.I;
  const auto spread = [&](const Doubles& images) {  // NaNs between the images, but not behind the last
    Doubles all;
    for (int64_t b = 0; b < c.shape.B; ++b) {
      if (b > 0) all.insert(all.end(), static_cast<std::size_t>(c.gap), kNaN);
      all.insert(all.end(), images.begin() + b * image, images.begin() + (b + 1) * image);
    }
    return all;
  };
  const Input x(spread(in[X]), c.dtype), residual(spread(in[RESIDUAL]), c.dtype), grad_y(in[GRAD_Y], c.dtype);
  const Input y(spread(want[Y]), c.dtype);
  const Input w1(in[W1], c.weight_dtype), b1(in[B1], c.weight_dtype), w2(in[W2], c.weight_dtype), b2(in[B2], c.weight_dtype);
  std::vector<Output> out;
  for (int t = 0; t < kTensors; ++t) {
    out.emplace_back(want[t].size(), t == SAVED ? c.sum_dtype() : t >= DW1 ? c.weight_dtype : c.dtype);
  }
  const auto asked = [&](int t) { return c.gradients >> t & 1 ? out[t].data() : nullptr; };

  ForwardParams f;
  static_cast<Params&>(f) = params_of(c, x, residual, w1, w2, out[SAVED].data());
  f.fc1_bias = c.bias1 ? b1.data : nullptr;
  f.fc2_bias = c.two_fc() && c.bias2 ? b2.data : nullptr;
  f.y = out[Y].data();
  f.y_batch_stride = image;
  if (cut.y != Cut::kFresh) {
    const Doubles& there = in[cut.y == Cut::kX ? X : RESIDUAL];
    for (std::size_t i = 0; i < there.size(); ++i) put(there[i], c.dtype, out[Y].data() + i * std::size_t(item_bytes(c.dtype)));
    (cut.y == Cut::kX ? f.x : f.epilogue.residual) = f.y;
    (cut.y == Cut::kX ? f.x_batch_stride : f.epilogue.residual_batch_stride) = image;
  }
  const Input scale(pre.scale, c.sum_dtype()), shift(pre.shift, c.sum_dtype());
  f.prologue = {pre.scale.empty() ? nullptr : scale.data, pre.shift.empty() ? nullptr : shift.data, pre.activation};
  const auto forced = [&](Plan plan) {
    plan.threads = cut.threads;
    plan.images_per_tile = cut.tile;
    plan.stream = cut.stream;
    plan.overlap = cut.overlap;
    if (c.rows_per_block && c.shape.I == 1) {
      plan.rows_per_block = c.rows_per_block;
      plan.blocks = (c.shape.O + c.rows_per_block - 1) / c.rows_per_block;
    }
    return plan;
  };
  forward(f, kernels, forced(plan_forward(f, Machine())), run_team);
  if (!f.prologue.is_identity()) return out;

  const Input saved(out[SAVED].values(), c.sum_dtype());
  BackwardParams g;
  static_cast<Params&>(g) = f;
  g.x = x.data;
  g.x_batch_stride = g.epilogue.residual_batch_stride = image + c.gap;
  g.epilogue.residual = c.from_y ? y.data : c.residual ? residual.data : nullptr;
  g.from_y = c.from_y;
  g.saved = saved.data;
  g.grad_y = grad_y.data;
  g.grad_x = asked(DX);
  g.grad_residual = out[DRESIDUAL].data();
  g.grad_fc1_weight = asked(DW1), g.grad_fc1_bias = asked(DB1);
  if (c.two_fc()) g.grad_fc2_weight = asked(DW2), g.grad_fc2_bias = asked(DB2);
  backward(g, kernels, forced(plan_backward(g, Machine())), run_team);
  return out;
}

std::vector<Case> cases() {
  constexpr Shape shapes[] = {
      {5, 1, 3, 49, 5},    {1, 1, 17, 129, 1}, {5, 1, 70, 16, 5}, {5, 3, 3, 2, 5},    {5, 3, 17, 15, 3},
      {5, 1, 1, 67, 1},    {2, 2, 3, 600, 3},  {0, 1, 3, 4, 3},   {5, 1, 1, 1, 1},    {5, 40, 17, 1, 5},
      {1, 700, 70, 1, 35}, {2, 3, 300, 1, 5},  {5, 40, 3, 1, 5},  {9, 1, 112, 1, 71}, {0, 3, 3, 1, 1},
  };
  constexpr Dtype dtypes[][2] = {{Dtype::f32, Dtype::f32},   {Dtype::f64, Dtype::f64},  {Dtype::f64, Dtype::f32},
                                 {Dtype::bf16, Dtype::bf16}, {Dtype::bf16, Dtype::f32}, {Dtype::f16, Dtype::f16},
                                 {Dtype::f16, Dtype::f32}};
  std::vector<Case> all;
  std::mt19937 random(7);
  const auto one_in = [&](unsigned n) { return random() % n == 0; };
  for (const Shape& shape : shapes) {
    for (const auto& [dtype, weight_dtype] : dtypes) {
      for (const Excitation excitation : {Excitation::two_fc, Excitation::one_fc, Excitation::channel_conv}) {
        Case c{.shape = shape, .excitation = excitation, .dtype = dtype, .weight_dtype = weight_dtype};
        if (excitation == Excitation::one_fc) c.shape.R = 0;
        const int n = static_cast<int>(all.size());
        c.activation = row(n / 3 % kRowCount);
        c.gate = row(one_in(2) ? int(ActivationKind::sigmoid) : n % kRowCount);
        c.post = row(one_in(2) ? int(ActivationKind::identity) : int(random() % kRowCount));
        if (!c.post.is_identity() && n % 3 == 0) c.post = row(int(ActivationKind::relu));  // often: two ways in backward
        c.add_one = one_in(2), c.residual = one_in(2), c.bias1 = !one_in(3), c.bias2 = !one_in(3);
        c.gap = one_in(2) ? 0 : 1 + random() % 9;
        c.gradients = one_in(2) ? ~0u : unsigned(random());
        c.rows_per_block = one_in(3) ? 7 : 0;
        c.from_y = c.residual && c.post.backward_reads_value() && n % 4;
        all.push_back(c);
      }
    }
  }
  return all;
}

void test_operation() {
  unsigned seed = 0;
  for (const Case& c : cases()) {
    const Inputs in = random_inputs(c, ++seed);
    const Results want = naive(c, in);
    const int64_t all = std::max<int64_t>(1, c.shape.B);
    std::vector<Output> first[2];  // x86-64's baseline has no fused multiply-add and rounds differently
    for_isas([&](const Kernels& kernels) {
      std::vector<Output>& same = first[std::strcmp(kernels.name, "baseline") == 0];
      for (const Cut& cut : {Cut{all, 1, false},
                             {all, 3, true},
                             {1, 1, true, Cut::kX, true},
                             {2, 3, false, Cut::kX},
                             {2, 2, true, Cut::kResidual, true},
                             {2, 3, true, Cut::kFresh, true}}) {
        if (cut.y == Cut::kResidual && !c.residual) continue;
        const std::string where = c.name() + " on " + kernels.name + ", " + cut.name();
        const std::vector<Output> out = run(c, in, want, kernels, cut);
        if (same.empty()) same = out;
        for (int t = 0; t < kTensors; ++t) {
          compare(where, Tensor(t), c, out[t], want[t], c.dtype == Dtype::f64 ? 1e-14 : 4e-6);
          check(out[t].bytes == same[t].bytes, "%s: %s has other bits than with one thread", where.c_str(), kTensorNames[t]);
        }
      }
    });
  }
}

void test_prologue() {
  unsigned seed = 0;
  for (const Case& c : cases()) {
    const Inputs in = random_inputs(c, ++seed);
    const PrologueNumbers pre = random_prologue(c, seed);
    if (pre.scale.empty() && pre.shift.empty() && pre.activation.is_identity()) continue;
    Inputs seen = in;
    seen[X] = behind(pre, c, in[X]);
    const Results want = naive(c, seen);
    const int64_t all = std::max<int64_t>(1, c.shape.B);
    std::vector<Output> first[2];
    for_isas([&](const Kernels& kernels) {
      std::vector<Output>& same = first[std::strcmp(kernels.name, "baseline") == 0];
      for (const Cut& cut : {Cut{all, 1, false}, {1, 3, true}, {2, 2, false, Cut::kX, true}}) {
        const std::string where = c.name() + " behind a prologue on " + kernels.name + ", " + cut.name();
        const std::vector<Output> out = run(c, in, want, kernels, cut, pre);
        if (same.empty()) same = out;
        for (const Tensor t : {Y, SAVED}) {
          compare(where, t, c, out[t], want[t], c.dtype == Dtype::f64 ? 1e-14 : 4e-6);
          check(out[t].bytes == same[t].bytes, "%s: %s has other bits than with one thread", where.c_str(), kTensorNames[t]);
        }
      }
    });
  }
}

void test_finite_differences() {
  for (const Excitation excitation : {Excitation::two_fc, Excitation::one_fc, Excitation::channel_conv}) {
    for (const Shape shape : {Shape{2, 2, 5, 3, 3}, Shape{3, 4, 5, 1, 3}}) {
      Case c{.shape = shape, .excitation = excitation};
      c.add_one = c.residual = true;
      c.activation = row(int(ActivationKind::gelu)), c.gate = row(int(ActivationKind::sigmoid)),
      c.post = row(int(ActivationKind::silu));
      Inputs in = random_inputs(c, 3);
      Results differences = naive(c, in);
      for (const auto& [input, gradient] :
           {std::pair{X, DX}, {RESIDUAL, DRESIDUAL}, {W1, DW1}, {B1, DB1}, {W2, DW2}, {B2, DB2}}) {
        for (std::size_t i = 0; i < in[input].size(); ++i) {
          double& number = in[input][i];
          const double middle = number, step = 1e-5;
          const Doubles above = (number = middle + step, naive(c, in)[Y]), below = (number = middle - step, naive(c, in)[Y]);
          number = middle, differences[gradient][i] = 0;
          for (std::size_t j = 0; j < above.size(); ++j) {
            differences[gradient][i] += (above[j] - below[j]) / (2 * step) * in[GRAD_Y][j];
          }
        }
      }
      for_isas([&](const Kernels& kernels) {
        const std::vector<Output> out = run(c, in, differences, kernels, {2, 1, false});
        for (int t = DX; t < kTensors; ++t) {
          compare(c.name() + " on " + kernels.name + ", by differences", Tensor(t), c, out[t], differences[t], 1e-8);
        }
      });
    }
  }
}

// Why a shape took its path, on a machine with a fast L3 of 32 MB and on one that has but its L2s.
void test_plan() {
  const Machine fast{2, 2 << 20, 27 << 20, 27 << 20, 27 << 20}, slow{2, 4 << 20, 0, 64 << 20, 4 << 20};
  const auto float32 = [](const Shape& s, const Machine& machine) {
    return plan(s, {4, 8 * s.K * s.R, machine.stream_forward_bytes}, machine);
  };
  const Shape small{1, 1, 16, 16, 4}, in_cache{8, 1, 512, 784, 32}, large{32, 1, 256, 3136, 16}, heavy{32, 1, 1024, 196, 64};
  check(float32(small, fast).threads == 1, "plan: a team for 2 kB");
  check(float32(in_cache, fast).images_per_tile == 8, "plan: more than one tile though the L3 holds all");
  check(float32(in_cache, slow).images_per_tile == 1, "plan: a tile that leaves the L2");
  for (const Shape& shape : {large, heavy}) {
    const Plan in_fast = float32(shape, fast), in_slow = float32(shape, slow);
    check(in_fast.stream && in_fast.overlap && !in_slow.overlap, "plan: x from memory, but not while y goes there");
  }
  check(float32(large, fast).images_per_tile == 1 && float32(heavy, fast).images_per_tile == 4,
        "plan: tiles not by the weight of weights");
}

void test_norm() { test_norm_passes(run_team); }

void test_contract() {
  std::vector<const Kernels*> tables;
  for (const std::string& name : isas()) {
    select_isa(name);
    check(kernels().name == name, "select_isa(%s) chose %s", name.c_str(), kernels().name);
    tables.push_back(&kernels());
  }
  const auto from_avx512 = [](const Kernels* of) {  // those that change bfloat16 alone, and the one they change
    return std::strncmp(of->name, "avx512", 6) == 0 || std::strcmp(of->name, "amx") == 0;
  };
  for (const Kernels* a : tables) {  // each has code of its own
    for (const Kernels* b : tables) {
      const bool same = a == b || (from_avx512(a) && from_avx512(b));
      check(same == (a->norm_f32.moments == b->norm_f32.moments) && same == (a->norm_f64.apply == b->norm_f64.apply) &&
                same == (a->data_f32.squeeze == b->data_f32.squeeze),
            "%s and %s share kernels, or do not where they should", a->name, b->name);
    }
  }
  try {
    select_isa("abacus");
    check(false, "select_isa(abacus): no std::invalid_argument");
  } catch (const std::invalid_argument& error) {
    check(std::strstr(error.what(), "abacus") && std::strstr(error.what(), isas()[0].c_str()), "select_isa(abacus): %s",
          error.what());
  }
}

}  // namespace

int main() {
  for (const std::string& name : isas()) std::printf("%s ", name.c_str());
  std::printf("\n");
  group("contract", test_contract);
  group("plan", test_plan);
  group("conversions", test_conversions);
  group("activations", test_activations);
  group("operation", test_operation);
  group("prologue", test_prologue);
  group("convolution", test_conv);
  group("finite differences", test_finite_differences);
  group("norm", test_norm);
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed ? 1 : 0;
}
