// The border between tensors and kernels: plain numbers and pointers, one struct per direction.
#pragma once
#include <cstdint>

#include "se/activations.h"

namespace senet {

enum class Dtype : std::uint8_t { f32, f64, bf16, f16 };
inline std::int64_t item_bytes(Dtype dtype) { return dtype == Dtype::f64 ? 8 : dtype == Dtype::f32 ? 4 : 2; }
enum class Excitation : std::uint8_t { two_fc, one_fc, channel_conv };

// x is seen as [B, O, K, I] with K the gated axis: the squeeze runs over O and I.
// NCHW, NCT, NCDHW: O = 1. channels_last and (B, T, C): I = 1.
struct Shape {
  std::int64_t B, O, K, I;
  std::int64_t R;  // hidden channels (two_fc), taps (channel_conv), 0 (one_fc)
};

// u = activation(x * scale + shift), rounded to the type of x: a folded BatchNorm and its activation. Forward only.
struct Prologue {
  const void* scale = nullptr;  // [K], in the type of sums; null: 1
  const void* shift = nullptr;  // [K]; null: 0
  Activation activation;

  bool is_identity() const { return !scale && !shift && activation.is_identity(); }
};

// y = activation(u * s + residual), with s the gate or 1 + gate.
struct Epilogue {
  bool add_one = false;
  const void* residual = nullptr;  // [B, O, K, I]
  std::int64_t residual_batch_stride = 0;
  Activation activation;
};

// What forward and backward share. Strides are in elements, not bytes; each image is dense.
struct Params {
  Shape shape;
  Dtype dtype = Dtype::f32;         // of x, y, residual and their gradients
  Dtype weight_dtype = Dtype::f32;  // of weights and biases: dtype, or f32
  Excitation excitation = Excitation::two_fc;
  Activation activation, gate;
  Epilogue epilogue;
  const void* x = nullptr;  // [B, O, K, I]
  std::int64_t x_batch_stride = 0;
  const void* fc1_weight = nullptr;  // [R, K], [K, K] (one_fc) or [R] (channel_conv)
  const void* fc2_weight = nullptr;  // [K, R]
  // [B, saved_width()], float32 or (for float64) float64: per image squeezed [K], input of the activation [R]
  // (two_fc only), input of the gate [K]. Written by forward, read by backward.
  void* saved = nullptr;

  std::int64_t hidden() const { return excitation == Excitation::two_fc ? shape.R : 0; }
  std::int64_t saved_width() const { return 2 * shape.K + hidden(); }
};

struct ForwardParams : Params {
  Prologue prologue;
  const void* fc1_bias = nullptr;  // [R], [K] (one_fc) or [1] (channel_conv)
  const void* fc2_bias = nullptr;  // [K]
  // [B, O, K, I], each image dense; may be x or the residual itself
  void* y = nullptr;
  std::int64_t y_batch_stride = 0;
};

// A 1x1 convolution with a gate on its input or output channels, forward only. With W the weight and s [C_in] or [C_out] the
// gate (1 + gate), per image:
//   input:  y = activation((W (x s)) * scale + shift + residual)
//   output: y = activation((W x * scale + shift) * s + residual)
// x is what the prologue makes of the x given. The squeeze is that of x in both: behind the convolution its mean is W mean(x) *
// scale + shift, and the first layer of the excitation has taken that in. x is [B, O, K, I] with K = C_in and O or I = 1;
// `saved` is not used.
struct ConvParams : Params {
  Prologue prologue;
  std::int64_t C_out = 0;
  bool gates_output = false;
  bool by_pixels = true;                           // the channels of a pixel lie side by side: I = 1, else O = 1
  const void* weight = nullptr;                    // by pixels packed as `right` of product.inl, else its rows as `left`
  const float *scale = nullptr, *shift = nullptr;  // [C_out]
  // fc1_weight is [R, C_in], [gated(), C_in] (one_fc) or [R] (channel_conv, on the input side alone)
  Dtype fc1_dtype = Dtype::f32;
  const void* fc1_bias = nullptr;  // in the type of its weight, as fc2_bias
  const void* fc2_bias = nullptr;
  void* y = nullptr;  // [B, O, C_out, I], dense

  std::int64_t gated() const { return gates_output ? C_out : shape.K; }
  std::int64_t pixels() const { return shape.O * shape.I; }
};

// A null gradient is not computed. grad_residual is written only where the epilogue has an activation, and then it must
// be there: backward uses it as scratch. Without one the residual's gradient is grad_y itself.
struct BackwardParams : Params {
  const void* grad_y = nullptr;  // [B, O, K, I], dense
  void* grad_x = nullptr;        // [B, O, K, I], dense
  void* grad_residual = nullptr;
  // epilogue.residual is y itself, and the activation's gradient is taken there, not at x * s + residual
  bool from_y = false;
  void *grad_fc1_weight = nullptr, *grad_fc1_bias = nullptr, *grad_fc2_weight = nullptr, *grad_fc2_bias = nullptr;
};

}  // namespace senet
