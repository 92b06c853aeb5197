// The cases that the GPU's kernels are tested with on the emulator.
#pragma once
#include <cstdlib>

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

int every = 1;  // every n-th case is run

}  // namespace
