// BatchNorm's passes beside SE against sums in double, written with nothing of the kernels'.
#pragma once
#include "se/cpu/norm.h"

#include "naive.h"

namespace {

// Maps of B images with K channels of `pixels` elements; by rows a pixel's channels lie together.
struct NormCase {
  int64_t B, K, pixels;
  bool rows;

  std::size_t maps() const { return std::size_t(B * K * pixels); }
  std::size_t numbers() const { return std::size_t(B * K); }
  Image image() const { return rows ? Image{pixels, K, 1} : Image{1, K, pixels}; }
  std::size_t at(int64_t b, int64_t k, int64_t i) const {
    return std::size_t(rows ? (b * pixels + i) * K + k : (b * K + k) * pixels + i);
  }
};

struct NormInputs {
  Doubles x, residual, grad_y, y, mean, scale, shift, slope, offset;
};
enum NormTensor { MEAN, SQUARES, NORM_Y, GRADS, PRODUCTS, NORM_DX, NORM_DRESIDUAL, kNormTensors };
constexpr const char* kNormNames[] = {"mean", "squares", "y", "grads", "products", "grad_x", "grad_residual"};
using NormResults = std::array<Doubles, kNormTensors>;  // what is wanted
using NormErrors = std::array<Doubles, kNormTensors>;   // the sizes of what was added up: an error is relative to them

// Channels far from 0, so that variances from plain squares would show; y has zeros, and one NaN, which lets the gradient by.
NormInputs norm_inputs(const NormCase& c, Dtype dtype, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  const auto filled = [&](std::size_t n, double spread) {
    Doubles all(n);
    for (double& one : all) one = rounded(spread * normal(random), dtype);
    return all;
  };
  NormInputs in{filled(c.maps(), 1),    filled(c.maps(), 1),    filled(c.maps(), 1),
                filled(c.maps(), 1),    filled(c.numbers(), 1), filled(c.numbers(), 1),
                filled(c.numbers(), 1), filled(c.numbers(), 1), filled(c.numbers(), 1)};
  for (int64_t b = 0; b < c.B; ++b) {
    for (int64_t k = 0; k < c.K; ++k) {
      for (int64_t i = 0; i < c.pixels; ++i) {
        double& x = in.x[c.at(b, k, i)];
        x = rounded(x + double(k % 7) * 30, dtype);
      }
    }
  }
  for (std::size_t i = 0; i < in.y.size(); i += 3) in.y[i] = 0;
  if (in.y.size() > 4) in.y[4] = kNaN;
  return in;
}

void norm_naive(const NormCase& c, const NormInputs& in, NormResults& want, NormErrors& size) {
  for (int t = 0; t < kNormTensors; ++t) {
    const bool map = t == NORM_Y || t == NORM_DX || t == NORM_DRESIDUAL;
    want[std::size_t(t)] = size[std::size_t(t)] = Doubles(map ? c.maps() : c.numbers(), 0.0);
  }
  for (int64_t b = 0; b < c.B; ++b) {
    for (int64_t k = 0; k < c.K; ++k) {
      const auto n = std::size_t(b * c.K + k);
      double mean = 0, squares = 0;
      for (int64_t i = 0; i < c.pixels; ++i) mean += in.x[c.at(b, k, i)] / double(c.pixels);
      for (int64_t i = 0; i < c.pixels; ++i) squares += std::pow(in.x[c.at(b, k, i)] - mean, 2);
      want[MEAN][n] = mean, size[MEAN][n] = std::abs(mean) + 1;
      want[SQUARES][n] = squares, size[SQUARES][n] = 10 * squares + 1;  // by rows twice the first pixel's distance is added
      for (int64_t i = 0; i < c.pixels; ++i) {
        const std::size_t at = c.at(b, k, i);
        const double distance = in.x[at] - in.mean[n], z = distance * in.scale[n] + in.shift[n] + in.residual[at];
        const double grad = in.y[at] <= 0 ? 0 : in.grad_y[at];
        want[NORM_Y][at] = std::max(z, 0.0);
        size[NORM_Y][at] = std::abs(distance * in.scale[n]) + std::abs(in.shift[n]) + std::abs(in.residual[at]);
        want[GRADS][n] += grad, size[GRADS][n] += std::abs(grad);
        want[PRODUCTS][n] += grad * distance, size[PRODUCTS][n] += std::abs(grad * distance);
        want[NORM_DX][at] = grad * in.scale[n] + distance * in.slope[n] + in.offset[n];
        size[NORM_DX][at] = std::abs(grad * in.scale[n]) + std::abs(distance * in.slope[n]) + std::abs(in.offset[n]);
        want[NORM_DRESIDUAL][at] = grad;
      }
    }
  }
}

template <class A, class RunTeam>
std::vector<Output> run_norm(const NormCase& c, const NormInputs& in, const Kernels& kernels, int64_t threads,
                             const RunTeam& run_team) {
  constexpr Dtype dtype = sizeof(A) == 8 ? Dtype::f64 : Dtype::f32;
  const NormPasses<A> norm{kernels.norm(A()), c.image(), c.B};
  const auto input = [](const Doubles& values) { return Input(values, dtype); };
  const Input x = input(in.x), residual = input(in.residual), grad_y = input(in.grad_y), y = input(in.y), mean = input(in.mean),
              scale = input(in.scale), shift = input(in.shift), slope = input(in.slope), offset = input(in.offset);
  std::vector<Output> out;
  for (int t = 0; t < kNormTensors; ++t) {
    const bool map = t == NORM_Y || t == NORM_DX || t == NORM_DRESIDUAL;
    out.emplace_back(map ? c.maps() : c.numbers(), dtype, t % 2);
  }
  const auto from = [](const Input& t) { return reinterpret_cast<const A*>(t.data); };
  const auto to = [&](NormTensor t) { return reinterpret_cast<A*>(out[std::size_t(t)].data()); };
  run_team(threads, [&](const Member& member) {
    norm.moments(member, from(x), to(MEAN), to(SQUARES));
    norm.apply(member, from(x), from(mean), from(scale), from(shift), from(residual), to(NORM_Y));
    norm.sums(member, from(grad_y), from(y), from(x), from(mean), to(GRADS), to(PRODUCTS));
    norm.gradients(member, from(grad_y), from(y), from(x), from(mean), from(scale), from(slope), from(offset), to(NORM_DX),
                   to(NORM_DRESIDUAL));
  });
  return out;
}

template <class A, class RunTeam>
void test_norm_case(const NormCase& c, unsigned seed, const RunTeam& run_team) {
  constexpr Dtype dtype = sizeof(A) == 8 ? Dtype::f64 : Dtype::f32;
  const NormInputs in = norm_inputs(c, dtype, seed);
  NormResults want;
  NormErrors size;
  norm_naive(c, in, want, size);
  std::vector<Output> first[2];  // x86-64's baseline has no fused multiply-add and rounds differently
  for_isas([&](const Kernels& kernels) {
    std::vector<Output>& same = first[std::strcmp(kernels.name, "baseline") == 0];
    for (const int64_t threads : {1, 2, 3}) {
      const std::vector<Output> out = run_norm<A>(c, in, kernels, threads, run_team);
      if (same.empty()) same = out;
      for (std::size_t t = 0; t < kNormTensors; ++t) {
        char where[200];
        std::snprintf(where, sizeof where, "norm of %d images, %d channels, %d pixels%s, %zu bytes, on %s, %d threads: %s",
                      int(c.B), int(c.K), int(c.pixels), c.rows ? " by rows" : "", sizeof(A), kernels.name, int(threads),
                      kNormNames[t]);
        check(out[t].guarded(), "%s was written outside", where);
        check(out[t].bytes == same[t].bytes, "%s has other bits than with one thread", where);
        const Doubles got = out[t].values();
        double worst = 0;
        for (std::size_t i = 0; i < got.size(); ++i) {
          const double error = std::abs(got[i] - want[t][i]), allowed = size[t][i];
          worst = std::max(worst, std::isnan(error) ? kInf : error == 0 ? 0 : error / allowed);
        }
        check(worst <= (sizeof(A) == 8 ? 2e-14 : 4e-6), "%s is off by %.3g", where, worst);
      }
    }
  });
}

template <class RunTeam>
void test_norm_passes(const RunTeam& run_team) {
  unsigned seed = 0;
  for (const bool rows : {false, true}) {
    for (const auto& [B, K, pixels] : {std::array<int64_t, 3>{2, 5, 1},
                                       {3, 17, 2},
                                       {1, 33, 15},
                                       {2, 16, 16},
                                       {5, 7, 49},
                                       {1, 70, 33},
                                       {2, 40, 129},
                                       {1, 3, 700},
                                       {0, 4, 9}}) {
      test_norm_case<float>({B, K, pixels, rows}, ++seed, run_team);
      test_norm_case<double>({B, K, pixels, rows}, ++seed, run_team);
    }
  }
}

}  // namespace
