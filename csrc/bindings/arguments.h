// From tensors to parameters: every check of the op's arguments, and the view of x as [B, O, K, I].
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>

#include "se/params.h"

namespace senet::bindings {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using OptionalDim = std::optional<std::int64_t>;

// The arguments of all ops, in the schema's order.
struct Arguments {
  const Tensor& x;
  const Tensor& fc1_weight;
  const OptionalTensor& fc1_bias;
  const OptionalTensor& fc2_weight;
  const OptionalTensor& fc2_bias;
  const OptionalTensor& residual;
  std::string_view excitation, activation, gate;
  OptionalDim dim;
  bool add_one;
  std::string_view post_activation;
};

inline Tensor or_undefined(const OptionalTensor& t) { return t.has_value() ? *t : Tensor(); }

// The axis as 1 .. x.dim() - 1, which is 1 by default; ValueError for the batch axis and beyond.
std::int64_t gated_axis(const Tensor& x, OptionalDim dim);

Excitation parse_excitation(std::string_view name);
// A spec such as "relu" or "leaky_relu(0.2)"; `argument` is named in the ValueError.
Activation parse_activation(std::string_view spec, const char* argument);

// Shapes, types and devices fit together; ValueError or TypeError names the argument, its value and what was expected.
// Safe for fake tensors with symbolic sizes.
void check(const Arguments& arguments);
// Its part for what makes a gate of K channels, which need not be those of x: the excitation's tensors, and the activations.
void check_excitation(const Arguments& arguments, const c10::SymInt& K);
// The same for what stands in front of x, alone and beside the rest.
void check_pre(const Tensor& x, OptionalDim dim, const OptionalTensor& pre_scale, const OptionalTensor& pre_shift,
               std::string_view pre_activation);
void check_prologue(const Arguments& arguments, const OptionalTensor& pre_scale, const OptionalTensor& pre_shift,
                    std::string_view pre_activation);
// The same for backward, with y in the place of the residual or None.
void check_backward(const Arguments& arguments, const OptionalTensor& y);
// Whether `out` overlaps another tensor is not checked: fake tensors have no memory.
void check_out(const Arguments& arguments, const Tensor& out);

// x as [B, O, K, I]: x itself where each of its images is dense, in whatever order of axes, else a contiguous copy (said
// once). The batch stride is free.
struct View {
  Tensor tensor;
  std::int64_t O, K, I;

  std::int64_t batch_stride() const { return tensor.stride(0); }
};
View view(const Tensor& x, std::int64_t axis);
// Whether t, of the shape of v, has v's strides within an image and, if asked, images one right behind the other.
bool matches(const Tensor& t, const View& v, bool dense_batch);
// An uninitialised tensor that matches v with a dense batch.
Tensor empty_dense(const View& v);
// t if it matches, else a copy that does.
Tensor matching(const Tensor& t, const View& v, bool dense_batch);

Dtype dtype_of(const Tensor& t);
// Float for half types and float32, Double for float64.
at::ScalarType accumulate_type(const Tensor& x);

// Params but for saved and the residual. The tensors must outlive them.
struct Weights {
  Tensor fc1_weight, fc1_bias, fc2_weight, fc2_bias;
};
Weights contiguous_weights(const Arguments& arguments);
Params params_of(const Arguments& arguments, const View& x, const Weights& weights);

// For outputs of the op, on any device, fake ones included.
c10::SymInt saved_width(const Arguments& arguments);

}  // namespace senet::bindings
