// Autograd, forward mode, functorch and autocast. The fused kernels give the first derivative; whatever needs more gets the
// composite, whose derivatives of every order torch knows.
#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/alias.h>
#include <ATen/ops/threshold_backward.h>
#include <dlfcn.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <string>

#include "bindings/ops.h"

namespace senet::bindings {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

bool any(std::initializer_list<Tensor> tensors, bool (*holds)(const Tensor&)) {
  return std::any_of(tensors.begin(), tensors.end(), [&](const Tensor& t) { return t.defined() && holds(t); });
}
// torch.func transforms wrap their tensors; forward mode carries a tangent. Neither goes through a Function.
bool transformed(const Tensor& t) { return t.key_set().has(c10::DispatchKey::FuncTorchGradWrapper) || t._fw_grad(0).defined(); }
bool requires_grad(const Tensor& t) { return t.requires_grad(); }

// Whether the op's derivative is wanted in a way that the fused kernels do not know.
bool composes(std::initializer_list<Tensor> tensors) {
  return any(tensors, transformed) || (at::GradMode::is_enabled() && any(tensors, requires_grad));
}

// Biases are kept without autograd's check of their version, as eager keeps none of them: a first derivative reads only what
// forward made of them (`saved`), and they may have changed meanwhile. A second derivative reads them.
std::int64_t memory_of(const Tensor& t) {  // another one where somebody has set t.data
  return t.has_storage() ? reinterpret_cast<std::int64_t>(t.storage().unsafeGetStorageImpl()) : 0;
}
void keep_bias(AutogradContext* ctx, const char* name, const OptionalTensor& bias) {
  if (!or_undefined(bias).defined()) return;
  ctx->saved_data[name] = *bias;
  ctx->saved_data[std::string(name) + "'s version"] = bias->is_inference() ? 0 : std::int64_t(bias->_version());
  ctx->saved_data[std::string(name) + "'s memory"] = memory_of(*bias);
}
OptionalTensor kept_bias(AutogradContext* ctx, const char* name) {
  const auto found = ctx->saved_data.find(name);
  return found == ctx->saved_data.end() ? OptionalTensor() : OptionalTensor(found->second.toTensor());
}
void check_unchanged(AutogradContext* ctx, const char* name, const OptionalTensor& bias) {
  if (!bias.has_value() || bias->is_inference()) return;
  const std::int64_t before = ctx->saved_data[std::string(name) + "'s version"].toInt(), now = bias->_version();
  TORCH_CHECK(now == before, "squeeze_excite: ", name, " was changed in place after the forward pass (it is at version ", now,
              "; expected version ", before, "), and second derivatives need its value");
  TORCH_CHECK(ctx->saved_data[std::string(name) + "'s memory"].toInt() == memory_of(*bias), "squeeze_excite: ", name,
              ".data was set after the forward pass, and second derivatives need its value");
}

struct SqueezeExcite : torch::autograd::Function<SqueezeExcite> {
  static constexpr bool is_traceable = true;

  // With a residual and ReLU, y is kept and not the residual: the next layer keeps y anyway, as torch's own relu does.
  // Elsewhere it is never y: hosts change it in place (`out += shortcut`).
  static bool keeps_y(bool has_residual, c10::string_view post_activation) {
    return has_residual && parse_activation(post_activation, "post_activation").backward_reads_value();
  }

  static Tensor forward(AutogradContext* ctx, SENET_ARGUMENTS) {
    ctx->set_materialize_grads(false);
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [y, saved] = call_forward(SENET_PASS);
    const bool activated = post_activation != "identity", has_residual = or_undefined(residual).defined();
    ctx->save_for_backward({x, fc1_weight, or_undefined(fc2_weight), saved,
                            keeps_y(has_residual, post_activation) ? y
                            : activated                            ? or_undefined(residual)
                                                                   : Tensor()});
    keep_bias(ctx, "fc1_bias", fc1_bias);
    keep_bias(ctx, "fc2_bias", fc2_bias);
    ctx->saved_data["residual"] = has_residual;
    ctx->saved_data["excitation"] = std::string(excitation);
    ctx->saved_data["activation"] = std::string(activation);
    ctx->saved_data["gate"] = std::string(gate);
    ctx->saved_data["dim"] = dim;
    ctx->saved_data["add_one"] = add_one;
    ctx->saved_data["post_activation"] = std::string(post_activation);
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    variable_list results(kGradients + 6);  // six tensors and six that are not
    const Tensor& grad_y = grads[0];
    if (!grad_y.defined()) return results;
    const auto kept = ctx->get_saved_variables();
    const auto text = [&](const char* key) { return ctx->saved_data[key].toStringRef(); };
    const auto optional = [](const Tensor& t) { return t.defined() ? OptionalTensor(t) : OptionalTensor(); };
    const Tensor &x = kept[0], &fc1_weight = kept[1], &saved = kept[3];
    const OptionalTensor fc2_weight = optional(kept[2]), fc1_bias = kept_bias(ctx, "fc1_bias"),
                         fc2_bias = kept_bias(ctx, "fc2_bias");
    const bool has_residual = ctx->saved_data["residual"].toBool();
    const std::string post_activation = text("post_activation");
    const bool from_y = keeps_y(has_residual, post_activation);
    const OptionalTensor y = optional(from_y ? kept[4] : Tensor()), residual = optional(from_y ? Tensor() : kept[4]);
    if (composes({grad_y, x, fc1_weight, or_undefined(fc1_bias), kept[2], or_undefined(fc2_bias), kept[4]})) {
      check_unchanged(ctx, "fc1_bias", fc1_bias);
      check_unchanged(ctx, "fc2_bias", fc2_bias);
    }
    const bool given[kGradients] = {true,        true, fc1_bias.has_value(), fc2_weight.has_value(), fc2_bias.has_value(),
                                    has_residual};
    Mask mask;
    for (int i = 0, edge = 0; i < kGradients; ++i) mask[i] = given[i] && ctx->needs_input_grad(edge++);  // edges: given only
    const Gradients gradients =
        call_backward(grad_y, saved, mask, x, fc1_weight, fc1_bias, fc2_weight, fc2_bias, residual, text("excitation"),
                      text("activation"), text("gate"), ctx->saved_data["dim"].toOptional<std::int64_t>(),
                      ctx->saved_data["add_one"].toBool(), post_activation, y);
    const Tensor tensors[] = {std::get<0>(gradients), std::get<1>(gradients), std::get<2>(gradients),
                              std::get<3>(gradients), std::get<4>(gradients), std::get<5>(gradients)};
    for (int i = 0; i < kGradients; ++i) {
      if (mask[i]) results[i] = tensors[i];
    }
    if (mask[5] && post_activation == "identity") results[5] = grad_y;
    return results;
  }
};

// Those of SENET_ARGUMENTS that may be differentiated.
#define SENET_TENSORS \
  x, fc1_weight, or_undefined(fc1_bias), or_undefined(fc2_weight), or_undefined(fc2_bias), or_undefined(residual)

Tensor op_autograd(SENET_ARGUMENTS) {
  const std::initializer_list<Tensor> tensors = {SENET_TENSORS};
  if (any(tensors, transformed)) return composite(SENET_PASS);
  if (!at::GradMode::is_enabled() || !any(tensors, requires_grad)) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_op(SENET_PASS);
  }
  return SqueezeExcite::apply(SENET_PASS);
}

// The prologue is fused where nothing is differentiated; else what it makes of x is composed, and the op on that is fused.
Tensor prologue_autograd(SENET_PROLOGUE_ARGUMENTS) {
  const std::initializer_list<Tensor> tensors = {SENET_TENSORS, or_undefined(pre_scale), or_undefined(pre_shift)};
  if (composes(tensors)) return behind_prologue(op_autograd, SENET_PROLOGUE_PASS);
  at::AutoDispatchBelowADInplaceOrView guard;
  return call_prologue(SENET_PROLOGUE_PASS);
}

Tensor prologue_batched(SENET_PROLOGUE_ARGUMENTS) { return behind_prologue(composite, SENET_PROLOGUE_PASS); }

void into_autograd(SENET_INTO_ARGUMENTS) {
  const std::initializer_list<Tensor> tensors = {SENET_TENSORS, or_undefined(pre_scale), or_undefined(pre_shift), out};
  TORCH_CHECK(!at::GradMode::is_enabled() || !any(tensors, requires_grad),
              "squeeze_excite: out= has no derivative; expected torch.no_grad() or inputs that require no gradient");
  TORCH_CHECK(!any(tensors, transformed), "squeeze_excite: out= takes neither tangents nor torch.func's tensors");
  at::AutoDispatchBelowAutograd guard;
  call_into(SENET_INTO_PASS);
}

// The tensor's version counts up, in inference mode too, so that autograd notices what it saved.
void into_inplace(SENET_INTO_ARGUMENTS) {
  {
    at::AutoDispatchBelowADInplaceOrView guard;
    call_into(SENET_INTO_PASS);
  }
  if (!out.is_inference()) out.unsafeGetTensorImpl()->bump_version();
}

// The three functions of Python that WithoutPythonLock needs. They are looked up in the process, because this library is not
// linked to Python; in a process without Python they are null, and there is no lock.
struct PythonLock {
  template <class Function>
  static Function* find(const char* name) {
    return reinterpret_cast<Function*>(dlsym(RTLD_DEFAULT, name));
  }
  int (*held)() = find<int()>("PyGILState_Check");
  void* (*release)() = find<void*()>("PyEval_SaveThread");
  void (*take)(void* state) = find<void(void*)>("PyEval_RestoreThread");
};

// The autograd engine refuses to start under Python's lock, which dispatch modes written in Python hold.
class WithoutPythonLock {
 public:
  WithoutPythonLock() : state_(lock().held && lock().held() ? lock().release() : nullptr) {}
  ~WithoutPythonLock() {
    if (state_) lock().take(state_);
  }
  WithoutPythonLock(const WithoutPythonLock&) = delete;

 private:
  static const PythonLock& lock() {
    static const PythonLock lock;
    return lock;
  }
  void* state_;
};

// The gradients as torch derives them from the composite, with a graph of their own: second derivatives and beyond. From y,
// relu's part is done there, as in torch, and what is left to derive is x * s.
Gradients composite_backward(const Tensor& grad_y, Mask mask, SENET_ARGUMENTS, const OptionalTensor& y) {
  check_backward({SENET_PASS}, y);
  at::AutoGradMode enable(true);
  const bool from_y = or_undefined(y).defined();
  const std::string_view post = from_y ? "identity" : std::string_view(post_activation);
  const auto wants = [&](int i, const Tensor& t) { return mask[i] && t.defined() && !(i == 5 && post == "identity"); };
  Tensor inputs[] = {
      x, fc1_weight, or_undefined(fc1_bias), or_undefined(fc2_weight), or_undefined(fc2_bias), or_undefined(residual)};
  for (Tensor& input : inputs) {
    if (!wants(static_cast<int>(&input - inputs), input)) continue;
    // A node of its own: gradients are then partial, also where one input is computed from another, and run no hooks of the
    // user's tensors. An alias keeps the graph behind it, and tangents.
    input = at::alias(input);
    if (!input.requires_grad()) input.requires_grad_();
  }
  const Tensor made = composite(inputs[0], inputs[1], inputs[2], inputs[3], inputs[4], inputs[5], excitation, activation, gate,
                                dim, add_one, post);
  const Tensor grad = from_y ? at::threshold_backward(grad_y, *y, 0) : grad_y;
  variable_list wanted;
  for (int i = 0; i < kGradients; ++i) {
    if (wants(i, inputs[i])) wanted.push_back(inputs[i]);
  }
  variable_list found;
  if (!wanted.empty()) {
    const WithoutPythonLock unlocked;
    found = torch::autograd::grad({made}, wanted, {grad}, /*retain_graph=*/true, /*create_graph=*/true);
  }
  Tensor results[kGradients];
  auto next = found.begin();
  for (int i = 0; i < kGradients; ++i) {
    results[i] = wants(i, inputs[i]) ? *next++ : at::empty({0}, x.options());
  }
  if (from_y && mask[5]) results[5] = grad;
  return {results[0], results[1], results[2], results[3], results[4], results[5]};
}

Gradients backward_autograd(const Tensor& grad_y, const Tensor& saved, Mask mask, SENET_ARGUMENTS, const OptionalTensor& y) {
  if (composes({grad_y, x, fc1_weight, or_undefined(fc1_bias), or_undefined(fc2_weight), or_undefined(fc2_bias),
                or_undefined(residual), or_undefined(y)})) {
    return composite_backward(grad_y, mask, SENET_PASS, y);
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return call_backward(grad_y, saved, mask, SENET_PASS, y);
}

// Under autocast the op needs no casts: it takes a half x beside float32 weights as they are. Weights of another half type
// become float32, and a residual of another type is brought, with x, to the wider of the two, as torch's addition does.
template <c10::DispatchKey kKey>
Tensor op_autocast(SENET_ARGUMENTS) {
  c10::impl::ExcludeDispatchKeyGuard no_autocast(kKey);
  const auto narrow = [](const Tensor& t) {
    return t.scalar_type() == at::kFloat || t.scalar_type() == at::kBFloat16 || t.scalar_type() == at::kHalf;
  };
  const auto cast = [&](const OptionalTensor& t, at::ScalarType type) {  // other types are for the check to refuse
    return t.has_value() && t->defined() && narrow(*t) ? OptionalTensor(t->to(type)) : t;
  };
  const bool has_residual = residual.has_value() && residual->defined();
  const at::ScalarType type = has_residual ? c10::promoteTypes(x.scalar_type(), residual->scalar_type()) : x.scalar_type();
  const bool fits = fc1_weight.scalar_type() == type;
  const at::ScalarType weight_type = fits ? type : at::kFloat;
  return call_op(*cast(x, type), *cast(fc1_weight, weight_type), cast(fc1_bias, weight_type), cast(fc2_weight, weight_type),
                 cast(fc2_bias, weight_type), cast(residual, type), excitation, activation, gate, dim, add_one,
                 post_activation);
}

// Weights as above; x and out stay, and so does the residual, which with out must be of their type.
OptionalTensor cast_beside(const Tensor& x, const Tensor& fc1_weight, const OptionalTensor& t) {
  const bool fits = fc1_weight.scalar_type() == x.scalar_type();
  return t.has_value() && t->defined() && !fits && t->scalar_type() != at::kDouble ? OptionalTensor(t->to(at::kFloat)) : t;
}

template <c10::DispatchKey kKey>
Tensor prologue_autocast(SENET_PROLOGUE_ARGUMENTS) {
  c10::impl::ExcludeDispatchKeyGuard no_autocast(kKey);
  const Tensor added = or_undefined(residual);
  if (added.defined() && added.scalar_type() != x.scalar_type()) {
    return behind_prologue(op_autocast<kKey>, SENET_PROLOGUE_PASS);
  }
  const auto cast = [&](const OptionalTensor& t) { return cast_beside(x, fc1_weight, t); };
  return call_prologue(x, *cast(fc1_weight), cast(fc1_bias), cast(fc2_weight), cast(fc2_bias), residual, excitation, activation,
                       gate, dim, add_one, post_activation, pre_scale, pre_shift, pre_activation);
}

template <c10::DispatchKey kKey>
void into_autocast(SENET_INTO_ARGUMENTS) {
  c10::impl::ExcludeDispatchKeyGuard no_autocast(kKey);
  const auto cast = [&](const OptionalTensor& t) { return cast_beside(x, fc1_weight, t); };
  call_into(x, *cast(fc1_weight), cast(fc1_bias), cast(fc2_weight), cast(fc2_bias), residual, excitation, activation, gate, dim,
            add_one, post_activation, pre_scale, pre_shift, pre_activation, out);
}

}  // namespace
}  // namespace senet::bindings

TORCH_LIBRARY_IMPL(senet_fast, ADInplaceOrView, m) { m.impl("squeeze_excite_into", &senet::bindings::into_inplace); }

TORCH_LIBRARY_IMPL(senet_fast, Autograd, m) {
  m.impl("squeeze_excite", &senet::bindings::op_autograd);
  m.impl("squeeze_excite_prologue", &senet::bindings::prologue_autograd);
  m.impl("squeeze_excite_into", &senet::bindings::into_autograd);
  m.impl("squeeze_excite_forward", torch::autograd::autogradNotImplementedFallback());
  m.impl("squeeze_excite_backward", &senet::bindings::backward_autograd);
}

TORCH_LIBRARY_IMPL(senet_fast, FuncTorchBatched, m) {
  m.impl("squeeze_excite", &senet::bindings::composite);
  m.impl("squeeze_excite_prologue", &senet::bindings::prologue_batched);
}

TORCH_LIBRARY_IMPL(senet_fast, AutocastCPU, m) {
  m.impl("squeeze_excite", &senet::bindings::op_autocast<c10::DispatchKey::AutocastCPU>);
  m.impl("squeeze_excite_prologue", &senet::bindings::prologue_autocast<c10::DispatchKey::AutocastCPU>);
  m.impl("squeeze_excite_into", &senet::bindings::into_autocast<c10::DispatchKey::AutocastCPU>);
}
TORCH_LIBRARY_IMPL(senet_fast, AutocastCUDA, m) {
  m.impl("squeeze_excite", &senet::bindings::op_autocast<c10::DispatchKey::AutocastCUDA>);
  m.impl("squeeze_excite_prologue", &senet::bindings::prologue_autocast<c10::DispatchKey::AutocastCUDA>);
  m.impl("squeeze_excite_into", &senet::bindings::into_autocast<c10::DispatchKey::AutocastCUDA>);
}
