// The table of kernels that each ISA fills. A kernel works on a range; the caller owns the threads.
#pragma once
#include <math.h>  // for math.inl: before any target region begins

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "se/export.h"
#include "se/params.h"

namespace senet {

// One image: x [O, K, I]. A unit of work is a channel (all its O*I elements) where I > 1, and a row o (its K elements)
// where I == 1; kernels take a range [begin, end) of units.
struct Image {
  std::int64_t O, K, I;

  [[gnu::always_inline]] bool by_rows() const { return I == 1; }  // see Activation::is_identity
  std::int64_t units() const { return by_rows() ? O : K; }
  std::int64_t elements_per_unit() const { return by_rows() ? K : O * I; }
};

// A: the type of sums and of the excitation, float or (for float64 data) double.
// u, y and grad_x may be what they are made of.
template <class A>
struct DataKernels {
  // sums[k] = sum of x over a channel (by channels); sums[K] = sums over the rows of the range (by rows).
  void (*squeeze)(const Image&, const void* x, std::int64_t begin, std::int64_t end, A* sums);
  // u = activation(x * scale[k] + shift[k]).
  void (*prologue)(const Image&, const void* x, const A* scale, const A* shift, const Activation&, void* u, std::int64_t begin,
                   std::int64_t end);
  // y = activation(x * scale[k] + residual); residual may be null. stream: y goes past the caches.
  void (*scale)(const Image&, const void* x, const A* scale, const void* residual, const Activation&, void* y, bool stream,
                std::int64_t begin, std::int64_t end);
  // Both: scale of an image, and squeeze of the same units of `next`, whose reads run beside the writes.
  void (*scale_squeeze)(const Image&, const void* x, const A* scale, const void* residual, const Activation&, void* y,
                        bool stream, const void* next, std::int64_t begin, std::int64_t end, A* sums);
  // sums as in squeeze, of grad_v * x, with grad_v = grad_y * activation'(x * scale[k] + residual), or from_y
  // grad_y * activation'(residual). grad_v is written where the activation is not the identity, else it may be null.
  void (*grad_scale)(const Image&, const void* grad_y, const void* x, const A* scale, const void* residual, bool from_y,
                     const Activation&, void* grad_v, std::int64_t begin, std::int64_t end, A* sums);
  // grad_x = grad_v * scale[k] + shift[k]. stream: grad_x goes past the caches.
  void (*grad_x)(const Image&, const void* grad_v, const A* scale, const A* shift, void* grad_x, bool stream,
                 std::int64_t begin, std::int64_t end);
};

// in and out are rows of `in_stride`, `out_stride` elements, one per image, B of them. Weights are row-major.
template <class A>
struct WeightKernels {
  // out[b, n] = sum_m in[b, m] * weight[n, m] + bias[n], for n in [begin, end); weight [N, M], bias may be null.
  void (*linear)(const A* in, std::int64_t in_stride, const void* weight, const void* bias, A* out, std::int64_t out_stride,
                 std::int64_t B, std::int64_t M, std::int64_t begin, std::int64_t end);
  // out[b, n] = sum_m in[b, m] * weight[m, n], for n in [begin, end); weight [M, N].
  void (*linear_transposed)(const A* in, std::int64_t in_stride, const void* weight, A* out, std::int64_t out_stride,
                            std::int64_t B, std::int64_t M, std::int64_t N, std::int64_t begin, std::int64_t end);
  // weight[m, n] = sum_b left[b, m] * right[b, n], bias[m] = sum_b left[b, m], for m in [begin, end); either may be null.
  void (*outer)(const A* left, std::int64_t left_stride, const A* right, std::int64_t right_stride, void* weight, void* bias,
                std::int64_t B, std::int64_t N, std::int64_t begin, std::int64_t end);
  void (*read)(const void* weight, A* out, std::int64_t n);
  void (*write)(const A* in, void* weight, std::int64_t n);
};

template <class A>
struct ActivationKernels {
  void (*value)(const Activation&, const A* z, A* out, std::int64_t n);
  // out = grad * activation'(z)
  void (*grad)(const Activation&, const A* z, const A* grad, A* out, std::int64_t n);
};

// A 1x1 convolution of maps of one type, in tiles: product.inl has the order of `left` and `right` in memory. x, y and the
// residual have that type; what is multiplied is float32 or, in pairs of k, bfloat16, up to `per_step` k at once.
struct ProductKernels {
  Dtype multiplied;
  std::int64_t per_step;
  // out[m][n] = sum over k of left[m][k] * right[k][n], for N columns and at most those up to a whole vector of 16
  void (*multiply)(std::int64_t M, std::int64_t N, std::int64_t steps, const void* left, std::int64_t left_stride,
                   const void* right, float* out, std::int64_t out_stride);
  // `left` of M rows of x, `right` of n columns; times scale[k], which may be null.
  void (*rows)(const void* x, std::int64_t x_stride, std::int64_t M, std::int64_t K, const float* scale, void* left);
  void (*pack)(const void* x, std::int64_t x_stride, std::int64_t n, std::int64_t K, const float* scale, void* right);
  // `right` of `vectors` columns, times scale[k]
  void (*scale_packed)(const void* right, std::int64_t vectors, std::int64_t K, const float* scale, void* scaled);
  // y = activation(sums * scale + shift + residual), [M][N]; scale and shift are [M] (by rows) or [N]. `sums` is overwritten.
  // stream: y goes past the caches where it consists of whole lines.
  void (*finish)(float* sums, std::int64_t sums_stride, std::int64_t M, std::int64_t N, const float* scale, const float* shift,
                 bool by_rows, const void* residual, const Activation&, void* y, std::int64_t y_stride, bool stream);

  std::int64_t group() const { return multiplied == Dtype::bf16 ? 2 : 1; }  // neighbours in k side by side in a vector
  std::int64_t steps(std::int64_t K) const { return (K + per_step - 1) / per_step; }
};

// BatchNorm in training with SE, an addition and ReLU behind it (norm.h). Maps are [O, K, I], numbers [K], all of one image;
// O = 1 or I = 1. No map that is written may be one that is read.
template <class A>
struct NormKernels {
  // The mean over O and I, and the sum of squared distances from it, of channels [begin, end).
  void (*moments)(const Image&, const A* x, A* mean, A* squares, std::int64_t begin, std::int64_t end);
  // y = relu((x - mean) * scale + shift + residual), for units [begin, end).
  void (*apply)(const Image&, const A* x, const A* mean, const A* scale, const A* shift, const A* residual, A* y,
                std::int64_t begin, std::int64_t end);
  // With grad = grad_y where y > 0: the sums over O and I of grad and of grad * (x - mean), of channels [begin, end).
  void (*sums)(const Image&, const A* grad_y, const A* y, const A* x, const A* mean, A* grads, A* products, std::int64_t begin,
               std::int64_t end);
  // grad_x = grad * scale + (x - mean) * slope + offset, grad_residual = grad, for units [begin, end).
  void (*gradients)(const Image&, const A* grad_y, const A* y, const A* x, const A* mean, const A* scale, const A* slope,
                    const A* offset, A* grad_x, A* grad_residual, std::int64_t begin, std::int64_t end);
};

struct Kernels {
  const char* name;
  DataKernels<float> data_f32, data_bf16, data_f16;
  DataKernels<double> data_f64;
  WeightKernels<float> weight_f32, weight_bf16, weight_f16;
  WeightKernels<double> weight_f64, weight_f32_in_f64;
  ActivationKernels<float> activation_f32;
  ActivationKernels<double> activation_f64;
  ProductKernels product_f32, product_bf16, product_f16;
  NormKernels<float> norm_f32;
  NormKernels<double> norm_f64;

  const ProductKernels& product(Dtype dtype) const {  // not of float64
    return dtype == Dtype::bf16 ? product_bf16 : dtype == Dtype::f16 ? product_f16 : product_f32;
  }
  const NormKernels<float>& norm(float) const { return norm_f32; }
  const NormKernels<double>& norm(double) const { return norm_f64; }
};

// An ISA file registers itself at its foot; of those supported here the one of the highest rank is used.
struct Isa {
  const char* name;
  int rank;
  bool (*supported)();
  const Kernels* kernels;
};
struct RegisterIsa {
  explicit RegisterIsa(const Isa&);
};

SENET_EXPORT std::vector<std::string> isas();  // supported here, by rank
SENET_EXPORT const Kernels& kernels();         // in use: the last of isas(), or SENET_FAST_ISA, or what select_isa() chose
SENET_EXPORT void select_isa(const std::string& name);  // std::invalid_argument for one that is not supported here

}  // namespace senet
