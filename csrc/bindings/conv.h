// The op of a 1x1 convolution with Squeeze-and-Excitation beside it: its signature, checks, and the same in other ops.
#pragma once
#include <ATen/core/TensorBody.h>

#include "bindings/arguments.h"

#define SENET_CONV_ARGUMENTS                                                                                                   \
  const Tensor &x, const Tensor &weight, const OptionalTensor &bias, const Tensor &fc1_weight, const OptionalTensor &fc1_bias, \
      const OptionalTensor &fc2_weight, const OptionalTensor &fc2_bias, const OptionalTensor &residual, c10::string_view side, \
      const OptionalTensor &norm_scale, const OptionalTensor &norm_shift, c10::string_view excitation,                         \
      c10::string_view activation, c10::string_view gate, bool add_one, c10::string_view post_activation,                      \
      const OptionalTensor &pre_scale, const OptionalTensor &pre_shift, c10::string_view pre_activation,                       \
      at::TensorList prepared
#define SENET_CONV_PASS                                                                                                        \
  x, weight, bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, residual, side, norm_scale, norm_shift, excitation, activation, \
      gate, add_one, post_activation, pre_scale, pre_shift, pre_activation, prepared

namespace senet::bindings {

// In the schema's order.
struct ConvArguments {
  const Tensor &x, &weight;
  const OptionalTensor& bias;
  const Tensor& fc1_weight;
  const OptionalTensor &fc1_bias, &fc2_weight, &fc2_bias, &residual;
  std::string_view side;
  const OptionalTensor &norm_scale, &norm_shift;
  std::string_view excitation, activation, gate;
  bool add_one;
  std::string_view post_activation;
  const OptionalTensor &pre_scale, &pre_shift;
  std::string_view pre_activation;
  at::TensorList prepared;

  Arguments beside() const {  // those of Squeeze-and-Excitation, but for the residual, which has the shape of y
    static const OptionalTensor none;
    return {x, fc1_weight, fc1_bias, fc2_weight, fc2_bias, none, excitation, activation, gate, 1, add_one, post_activation};
  }
};

using ConvOp = Tensor(SENET_CONV_ARGUMENTS);
using ConvIntoOp = void(SENET_CONV_ARGUMENTS, const Tensor& y);

// Whether the gate is on what comes out of the convolution; ValueError for a side other than "input" and "output".
bool gates_output(std::string_view side);
// As check() of arguments.h. What `prepared` must be depends on the processor: the op on the CPU looks at it.
void check_conv(const ConvArguments& arguments);
// That of y: channels_last where torch takes x for such a tensor.
at::MemoryFormat format_of(const Tensor& x);

// The same by squeeze_excite and a convolution, on any device and in any type.
Tensor conv_composed(SENET_CONV_ARGUMENTS);
// Through the dispatcher, from the first key that is not excluded.
Tensor call_conv(SENET_CONV_ARGUMENTS);

}  // namespace senet::bindings
