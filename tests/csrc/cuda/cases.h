// The cases that the GPU's kernels are tested with on the emulator.
#pragma once
#include <cstdlib>
#include <map>

#include "../naive.h"
#include "emulator.h"
#include "se/cuda/port.cuh"

namespace {

// How a case lies in memory and is cut.
struct Setting {
  int x_offset, y_offset, residual_offset;  // elements behind a boundary of 16 bytes
  int64_t tile_bytes;
  int lag;  // 0: the planner's
  bool prologue;
};

// The types of x and of the weights; with SENET_FEW_TYPES those that compile soon enough for one mutation after the other.
constexpr Dtype kDtypes[][2] = {
    {Dtype::f32, Dtype::f32},  {Dtype::f16, Dtype::f16},
#if !defined(SENET_FEW_TYPES)
    {Dtype::f64, Dtype::f64},  {Dtype::f64, Dtype::f32}, {Dtype::bf16, Dtype::bf16},
    {Dtype::bf16, Dtype::f32}, {Dtype::f16, Dtype::f32},
#endif
};

// kernel.template operator()<T, W>() for the types of a case
template <class Body>
void for_types(const Case& c, const Body& body) {
#if !defined(SENET_FEW_TYPES)
  const bool wide = c.weight_dtype == Dtype::f32;
  if (c.dtype == Dtype::f64)
    return wide ? body.template operator()<double, float>() : body.template operator()<double, double>();
  if (c.dtype == Dtype::f16 && wide) return body.template operator()<cuda::f16, float>();
  if (c.dtype == Dtype::bf16) {
    return wide ? body.template operator()<cuda::bf16, float>() : body.template operator()<cuda::bf16, cuda::bf16>();
  }
#endif
  return c.dtype == Dtype::f32 ? body.template operator()<float, float>() : body.template operator()<cuda::f16, cuda::f16>();
}

// A copy of a tensor's values as its images lie in memory: NaNs between them, but not behind the last.
Doubles spread(const Case& c, const Doubles& images) {
  const int64_t image = c.shape.O * c.shape.K * c.shape.I;
  Doubles all;
  for (int64_t b = 0; b < c.shape.B; ++b) {
    if (b > 0) all.insert(all.end(), static_cast<std::size_t>(c.gap), kNaN);
    all.insert(all.end(), images.begin() + b * image, images.begin() + (b + 1) * image);
  }
  return all;
}

struct TestCase {
  Case c;
  Setting setting;
};

std::vector<TestCase> cases() {
  constexpr Shape shapes[] = {
      {3, 1, 64, 49, 16}, {2, 1, 17, 129, 1}, {3, 1, 70, 16, 5},  {4, 3, 3, 2, 5},     {2, 3, 17, 15, 3}, {5, 1, 1, 67, 1},
      {2, 2, 3, 600, 3},  {0, 1, 3, 4, 3},    {5, 1, 1, 1, 1},    {3, 40, 17, 1, 5},   {1, 700, 7, 1, 3}, {2, 3, 300, 1, 7},
      {3, 49, 64, 1, 16}, {9, 1, 40, 1, 71},  {2, 1, 1, 3000, 1}, {2, 1, 1100, 1, 24}, {2, 5, 2, 333, 3}, {3, 64, 24, 1, 8},
      {2, 1, 16, 64, 9},  {1, 0, 3, 4, 3},    {2, 1, 9, 7, 1100},
  };
  std::vector<TestCase> all;
  std::mt19937 random(11);
  const auto one_in = [&](unsigned n) { return random() % n == 0; };
  for (const Shape& shape : shapes) {
    for (const auto& [dtype, weight_dtype] : kDtypes) {
      for (const Excitation excitation : {Excitation::two_fc, Excitation::one_fc, Excitation::channel_conv}) {
        if (excitation == Excitation::one_fc && shape.K > 300) continue;
        Case c{.shape = shape, .excitation = excitation, .dtype = dtype, .weight_dtype = weight_dtype};
        if (excitation == Excitation::one_fc) c.shape.R = 0;
        if (excitation == Excitation::channel_conv) c.shape.R = shape.R % 8 / 2 * 2 + 1;
        const int n = static_cast<int>(all.size());
        c.activation = row(n / 3 % kRowCount);
        c.gate = row(one_in(2) ? int(ActivationKind::sigmoid) : n % kRowCount);
        c.post = row(one_in(3)   ? int(ActivationKind::identity)
                     : one_in(2) ? int(ActivationKind::relu)
                                 : int(random() % kRowCount));
        c.add_one = one_in(2), c.residual = one_in(2), c.bias1 = !one_in(3), c.bias2 = !one_in(3);
        c.from_y = c.residual && c.post.backward_reads_value() && n % 4;
        c.gap = one_in(2) ? 0 : 1 + random() % 9;
        c.gradients = one_in(2) ? ~0u : unsigned(random());
        Setting s{0, 0, 0, 1 << (7 + random() % 5), one_in(2) ? 0 : 1 + int(random() % 3), one_in(3)};
        if (one_in(3)) s.x_offset = s.y_offset = s.residual_offset = 1 + int(random() % 7);
        if (one_in(4)) s.y_offset = int(random() % 4);
        all.push_back({c, s});
      }
    }
  }
  return all;
}

// A call of forward and what it writes. In place, y holds x.
struct ForwardCall {
  Input x, residual, w1, b1, w2, b2, scale, shift;
  Output y, saved;
  ForwardParams p;

  ForwardCall(const Case& c, const Setting& setting, bool save, bool in_place, const Inputs& in, const PrologueNumbers& pre)
      : x(spread(c, in[X]), c.dtype, setting.x_offset),
        residual(spread(c, in[RESIDUAL]), c.dtype, setting.residual_offset),
        w1(in[W1], c.weight_dtype, setting.tile_bytes % 3),
        b1(in[B1], c.weight_dtype),
        w2(in[W2], c.weight_dtype, setting.tile_bytes % 2),
        b2(in[B2], c.weight_dtype),
        scale(pre.scale, c.sum_dtype()),
        shift(pre.shift, c.sum_dtype()),
        y(in[X].size(), c.dtype, setting.y_offset),
        saved(std::size_t(c.shape.B * (2 * c.shape.K + (c.two_fc() ? c.shape.R : 0))), c.sum_dtype()) {
    static_cast<Params&>(p) = params_of(c, x, residual, w1, w2, save ? saved.data() : nullptr);
    p.prologue = {pre.scale.empty() ? nullptr : scale.data, pre.shift.empty() ? nullptr : shift.data, pre.activation};
    p.fc1_bias = c.bias1 ? b1.data : nullptr;
    p.fc2_bias = c.two_fc() && c.bias2 ? b2.data : nullptr;
    p.y = y.data();
    p.y_batch_stride = c.shape.O * c.shape.K * c.shape.I;
    if (!in_place) return;
    for (std::size_t i = 0; i < in[X].size(); ++i) put(in[X][i], c.dtype, y.data() + i * std::size_t(item_bytes(c.dtype)));
    p.x = p.y;
    p.x_batch_stride = p.y_batch_stride;
  }
};

// A call of backward and the gradients it writes, by Tensor: those that the case asks for.
struct BackwardCall {
  Input x, grad_y, residual, w1, w2, saved;
  std::vector<Output> gradients;
  BackwardParams p;

  BackwardCall(const Case& c, const Setting& setting, const Inputs& in, const Results& want)
      : x(spread(c, in[X]), c.dtype, setting.x_offset),
        grad_y(in[GRAD_Y], c.dtype, setting.y_offset),
        residual(spread(c, c.from_y ? want[Y] : in[RESIDUAL]), c.dtype, setting.residual_offset),
        w1(in[W1], c.weight_dtype, 0),
        w2(in[W2], c.weight_dtype, 0),
        saved(want[SAVED], c.sum_dtype()) {
    for (int t = 0; t < kTensors; ++t) {
      gradients.emplace_back(want[t].size(), t >= DW1 ? c.weight_dtype : c.dtype,
                             t == DX ? setting.y_offset : setting.x_offset);
    }
    const auto asked = [&](int t) { return c.gradients >> t & 1 ? gradients[t].data() : nullptr; };
    static_cast<Params&>(p) = params_of(c, x, residual, w1, w2, saved.data);
    p.grad_y = grad_y.data;
    p.grad_x = asked(DX);
    p.from_y = c.from_y;
    p.grad_residual = c.post.is_identity() ? nullptr : gradients[DRESIDUAL].data();
    p.grad_fc1_weight = asked(DW1), p.grad_fc1_bias = asked(DB1);
    if (c.two_fc()) p.grad_fc2_weight = asked(DW2), p.grad_fc2_bias = asked(DB2);
  }
};

int every = 1;  // about every n-th case is run
// Not by turns: those would meet the order of excitations and types in cases(), and leave whole kinds out.
bool chosen(unsigned seed) { return std::mt19937(seed)() % unsigned(every) == 0; }

std::string name_of(const Case& c, const Setting& s) {
  return c.name() + " offsets " + std::to_string(s.x_offset) + std::to_string(s.y_offset) + std::to_string(s.residual_offset) +
         " tile " + std::to_string(s.tile_bytes) + " lag " + std::to_string(s.lag) + (s.prologue ? " prologue" : "");
}
double noise_of(const Case& c) { return c.dtype == Dtype::f64 ? 1e-14 : 4e-6; }

// Of Tested: can(case); schedules(seed); run(where, case, setting, schedule, call), false where that schedule cannot be. A
// schedule has save, in_place, name() and bits(): those where it is equal give equal bits.
template <class Tested>
void test_forward() {
  unsigned seed = 0;
  for (const auto& [c, setting] : cases()) {
    if (!Tested::can(c) || !chosen(++seed)) continue;
    const Inputs in = random_inputs(c, seed);
    const PrologueNumbers pre = setting.prologue ? random_prologue(c, seed) : PrologueNumbers();
    Inputs seen = in;
    seen[X] = behind(pre, c, in[X]);
    const Results want = naive(c, seen);
    std::map<int, std::vector<char>> first;  // y, by bits()
    for (const auto& schedule : Tested::schedules(seed)) {
      // in place, x lies where y does
      if (schedule.in_place && (setting.x_offset != setting.y_offset || c.gap != 0)) continue;
      const std::string where = name_of(c, setting) + ", " + schedule.name();
      ForwardCall call(c, setting, schedule.save, schedule.in_place, in, pre);
      if (!Tested::run(where, c, setting, schedule, call)) continue;
      compare(where, Y, c, call.y, want[Y], noise_of(c));
      if (schedule.save && c.shape.O * c.shape.I == 0) {
        for (const double v : call.saved.values()) check(std::isnan(v), "%s: the mean of nothing is %g", where.c_str(), v);
      } else if (schedule.save) {
        compare(where, SAVED, c, call.saved, want[SAVED], noise_of(c));
      }
      const auto [same, inserted] = first.try_emplace(schedule.bits(), call.y.bytes);
      check(call.y.bytes == same->second, "%s: y has other bits", where.c_str());
    }
  }
}

template <class Tested>
void test_backward() {
  unsigned seed = 1000;
  for (const auto& [c, setting] : cases()) {
    if (!Tested::can(c) || c.shape.O == 0 || !chosen(++seed)) continue;
    const Inputs in = random_inputs(c, seed);
    const Results want = naive(c, in);
    std::map<int, std::vector<Output>> first;
    for (const auto& schedule : Tested::schedules(seed)) {
      if (schedule.in_place) continue;
      const std::string where = "backward of " + name_of(c, setting) + ", " + schedule.name();
      BackwardCall call(c, setting, in, want);
      if (!Tested::run(where, c, setting, schedule, call)) continue;
      const auto& same = first.try_emplace(schedule.bits(), call.gradients).first->second;
      for (int t = DX; t < kTensors; ++t) {
        // a tap's gradient is one sum over channels and images, and may cancel
        const double cancels = c.excitation == Excitation::channel_conv && t >= DW1 ? 16 : 1;
        compare(where, Tensor(t), c, call.gradients[t], want[t], cancels * noise_of(c));
        check(call.gradients[t].bytes == same[t].bytes, "%s: %s has other bits", where.c_str(), kTensorNames[t]);
      }
    }
  }
}

template <class Tested>
int test(int count, char** arguments, void (*test_plan)()) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // mutate.py reads as far as the first failure
  if (count > 1) every = std::max(1, std::atoi(arguments[1]));
  group("plan", test_plan);
  group("forward", test_forward<Tested>);
  group("backward", test_backward<Tested>);
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed ? 1 : 0;
}

}  // namespace
