// The signatures of the ops, shared by schema, autograd and devices.
#pragma once
#include <array>
#include <tuple>

#include "bindings/arguments.h"

#define SENET_ARGUMENTS                                                                                        \
  const Tensor &x, const Tensor &fc1_weight, const OptionalTensor &fc1_bias, const OptionalTensor &fc2_weight, \
      const OptionalTensor &fc2_bias, const OptionalTensor &residual, c10::string_view excitation,             \
      c10::string_view activation, c10::string_view gate, OptionalDim dim, bool add_one, c10::string_view post_activation
#define SENET_PASS \
  x, fc1_weight, fc1_bias, fc2_weight, fc2_bias, residual, excitation, activation, gate, dim, add_one, post_activation

// What stands in front, and in squeeze_excite_into the tensor that is written.
#define SENET_PROLOGUE_ARGUMENTS \
  SENET_ARGUMENTS, const OptionalTensor &pre_scale, const OptionalTensor &pre_shift, c10::string_view pre_activation
#define SENET_PROLOGUE_PASS SENET_PASS, pre_scale, pre_shift, pre_activation
#define SENET_INTO_ARGUMENTS SENET_PROLOGUE_ARGUMENTS, const Tensor& out
#define SENET_INTO_PASS SENET_PROLOGUE_PASS, out

namespace senet::bindings {

// Gradients of x, fc1_weight, fc1_bias, fc2_weight, fc2_bias, residual, in this order everywhere. One that was not asked
// for, and the residual's where it is grad_y itself, is a tensor without elements.
constexpr int kGradients = 6;
using Mask = std::array<bool, kGradients>;
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

using Op = Tensor(SENET_ARGUMENTS);
using PrologueOp = Tensor(SENET_PROLOGUE_ARGUMENTS);
using IntoOp = void(SENET_INTO_ARGUMENTS);
using ForwardOp = std::tuple<Tensor, Tensor>(SENET_ARGUMENTS);
// y: in the place of the residual, where post_activation is relu; mask[5] asks for the residual's gradient all the same.
using BackwardOp = Gradients(const Tensor& grad_y, const Tensor& saved, Mask mask, SENET_ARGUMENTS, const OptionalTensor& y);

// Through the dispatcher, from the first key that is not excluded.
Tensor call_op(SENET_ARGUMENTS);
Tensor call_prologue(SENET_PROLOGUE_ARGUMENTS);
void call_into(SENET_INTO_ARGUMENTS);
std::tuple<Tensor, Tensor> call_forward(SENET_ARGUMENTS);
Gradients call_backward(const Tensor& grad_y, const Tensor& saved, Mask mask, SENET_ARGUMENTS, const OptionalTensor& y);

// The same result in plain ATen ops, for what the fused kernels do not do: higher derivatives, forward mode, functorch.
Tensor composite(SENET_ARGUMENTS);
// The activation of this spec in ATen ops; `argument` is named in errors.
Tensor activate(std::string_view spec, const char* argument, const Tensor& z);
// u = pre_activation(x * pre_scale + pre_shift) in plain ATen ops, rounded to the type of x.
Tensor prologued(const Tensor& x, OptionalDim dim, const OptionalTensor& pre_scale, const OptionalTensor& pre_shift,
                 std::string_view pre_activation);
// op(u, ...) for what the fused prologue does not do: every derivative, torch.func and a residual of another type.
Tensor behind_prologue(Op& op, SENET_PROLOGUE_ARGUMENTS);

// Uninitialised gradients of the right shapes, on any device.
Gradients empty_gradients(const Arguments& arguments, const OptionalTensor& y, Mask mask);

}  // namespace senet::bindings
