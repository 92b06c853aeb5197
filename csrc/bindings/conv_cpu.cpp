// A 1x1 convolution with Squeeze-and-Excitation beside it, on the CPU: what of the weights is prepared, and the fused call.
#include <ATen/MemoryOverlap.h>
#include <ATen/native/CPUBlas.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/conv1d.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>

#include "bindings/conv.h"
#include "bindings/cpu.h"
#include "bindings/run.h"
#include "bindings/team.h"
#include "se/cpu/conv.h"

namespace senet::bindings {
namespace {

using Prepared = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;  // weight, scale, shift, fc1_weight, fc1_bias
constexpr std::int64_t kVector = 16;                                  // channels, as product.inl has them

bool torch_has_amx() {
#if defined(CPUBLAS_BRGEMM_BF16BF16F32)
  static const bool has = at::native::cpublas::could_pack(at::kBFloat16);
  return has;
#else
  return false;
#endif
}

at::ScalarType multiplied(const ProductKernels& product) {
  return product.multiplied == Dtype::bf16 ? at::kBFloat16 : at::kFloat;
}

// The shape of a prepared weight: [C_out / 16, C_in, 16] beside channels_last, with zeros up to whole vectors and steps, and
// with bfloat16 [C_out / 16, C_in / 2, 16, 2]; [C_out, C_in] beside nchw.
c10::DimVector packed_sizes(std::int64_t outputs, std::int64_t inputs, const ProductKernels& product, bool channels_last) {
  const std::int64_t whole = product.steps(inputs) * product.per_step, group = product.group();
  if (!channels_last) return {outputs, whole};
  c10::DimVector sizes = {(outputs + kVector - 1) / kVector, whole / group, kVector};
  if (group > 1) sizes.push_back(group);
  return sizes;
}

Tensor pack(const Tensor& weight, const ProductKernels& product, bool channels_last) {
  const Tensor w = weight.flatten(1).to(multiplied(product)).contiguous();
  const c10::DimVector sizes = packed_sizes(w.size(0), w.size(1), product, channels_last);
  const std::int64_t whole = product.steps(w.size(1)) * product.per_step, group = product.group();
  const std::int64_t rows = channels_last ? sizes[0] * kVector : w.size(0);
  const Tensor padded = at::constant_pad_nd(w, {0, whole - w.size(1), 0, rows - w.size(0)});  // a copy, always
  if (!channels_last) return padded;
  return padded.view({sizes[0], kVector, whole / group, group}).transpose(1, 2).contiguous().view(sizes);
}

Prepared prepare(const Tensor& weight, const OptionalTensor& bias, const Tensor& fc1_weight, const OptionalTensor& fc1_bias,
                 c10::string_view side, const OptionalTensor& norm_scale, const OptionalTensor& norm_shift,
                 c10::string_view excitation, at::ScalarType dtype, bool channels_last) {
  const auto numbers = [](const OptionalTensor& t) { return or_undefined(t).defined() ? t->to(at::kDouble) : Tensor(); };
  const auto floats = weight.options().dtype(at::kFloat);
  const Tensor b = numbers(bias), factor = numbers(norm_scale), offset = numbers(norm_shift);
  Tensor scale = factor.defined() ? factor : at::ones({weight.size(0)}, floats.dtype(at::kDouble));
  Tensor shift = b.defined() ? b * scale : at::zeros({weight.size(0)}, scale.options());
  if (offset.defined()) shift = shift + offset;
  const Tensor packed = pack(weight, kernels().product(dtype == at::kBFloat16 ? Dtype::bf16 : Dtype::f32), channels_last);
  // .to() may return what it is given: what is returned here is new
  const auto made = [&](const Tensor& t) { return t.to(floats, false, /*copy=*/true).contiguous(); };
  if (!gates_output(side)) return {packed, made(scale), made(shift), at::empty({0}, floats), at::empty({0}, floats)};
  // The squeeze of what comes out is scale * (W mean) + shift. The first layer takes that in; rounded once, from float64.
  const Tensor rows = weight.flatten(1).to(at::kDouble) * scale.unsqueeze(1), fc1 = fc1_weight.to(at::kDouble);
  const auto layer = [&](const Tensor& squeezed) {  // columns of [C_out]
    if (parse_excitation(excitation) != Excitation::channel_conv) return at::matmul(fc1.flatten(1), squeezed);
    return at::conv1d(squeezed.t().unsqueeze(1), fc1.reshape({1, 1, -1}), {}, 1, "same").squeeze(1).t();
  };
  Tensor first_bias = layer(shift.unsqueeze(1)).squeeze(1);
  if (or_undefined(fc1_bias).defined()) first_bias = first_bias + fc1_bias->to(at::kDouble);
  return {packed, made(scale), made(shift), made(layer(rows)), made(first_bias)};
}

// Whether the images of t are dense in this format.
bool dense_images(const Tensor& t, bool channels_last) {
  std::int64_t expected = 1;
  const auto passes = [&](std::int64_t d) {
    const bool fits = t.size(d) == 1 || t.stride(d) == expected;
    expected *= t.size(d);
    return fits;
  };
  bool dense = true;
  if (channels_last) dense = passes(1);
  for (std::int64_t d = t.dim() - 1; d > 1; --d) dense = dense && passes(d);
  return dense && (channels_last || passes(1));
}

void check_prepared(const ConvArguments& a, const ConvParams& p) {
  TORCH_CHECK_VALUE(a.prepared.size() == 5, "squeeze_excite_conv: prepared has ", a.prepared.size(),
                    " tensors; expected the 5 of squeeze_excite_conv_prepare, or none");
  const auto check = [&](int at, const char* name, at::IntArrayRef sizes) {
    const Tensor& t = a.prepared[at];
    TORCH_CHECK_VALUE(t.sizes() == sizes && t.scalar_type() == at::kFloat && t.is_contiguous() && t.is_cpu(),
                      "squeeze_excite_conv: prepared[", at, "] (", name, ") is ", t.toString(), t.sizes(), "; expected Float",
                      sizes, ", as squeeze_excite_conv_prepare makes it of these weights");
  };
  check(1, "scale", {p.C_out});
  check(2, "shift", {p.C_out});
  if (!p.gates_output) return;
  const std::int64_t outputs = p.excitation == Excitation::two_fc ? p.shape.R : p.C_out;
  check(3, "fc1_weight", {outputs, p.shape.K});
  check(4, "fc1_bias", {outputs});
}

// Of sizes, types and strides; pointers follow.
ConvParams params_of_conv(const ConvArguments& a, bool channels_last) {
  ConvParams p;
  const std::int64_t pixels = a.x.numel() / (a.x.size(0) * a.x.size(1));
  p.C_out = a.weight.size(0);
  p.gates_output = gates_output(a.side);
  p.by_pixels = channels_last;
  p.excitation = parse_excitation(a.excitation);
  const std::int64_t R = p.excitation == Excitation::one_fc   ? 0
                         : p.excitation == Excitation::two_fc ? a.fc1_weight.size(0)
                                                              : a.fc1_weight.numel();
  p.shape = {a.x.size(0), channels_last ? pixels : 1, a.x.size(1), channels_last ? 1 : pixels, R};
  p.dtype = dtype_of(a.x);
  p.weight_dtype = p.fc1_dtype = dtype_of(a.fc1_weight);
  p.activation = parse_activation(a.activation, "activation");
  p.gate = parse_activation(a.gate, "gate");
  p.epilogue.add_one = a.add_one;
  p.epilogue.activation = parse_activation(a.post_activation, "post_activation");
  return p;
}

// y: where that is defined, its memory takes the result if it is laid out as a new one would be. The result is returned.
Tensor conv_made(SENET_CONV_ARGUMENTS, Tensor y) {
  const ConvArguments a{SENET_CONV_PASS};
  check_conv(a);
  const at::MemoryFormat format = format_of(x);
  const bool last = format != at::MemoryFormat::Contiguous;
  c10::DimVector sizes(x.sizes());
  sizes[1] = weight.size(0);
  if (x.numel() == 0) return at::empty(sizes, x.options(), format);
  ConvParams p = params_of_conv(a, last);
  if (!prepared.empty()) check_prepared(a, p);
  const ProductKernels& product = kernels().product(p.dtype);
  const bool fits = !prepared.empty() && p.dtype != Dtype::f64 && prepared[0].scalar_type() == multiplied(product) &&
                    prepared[0].is_contiguous() && prepared[0].sizes().equals(packed_sizes(p.C_out, p.shape.K, product, last));
  p.epilogue.residual = pointer_of(or_undefined(residual));  // its presence counts for the planner
  const ConvRoute route = route_conv(p, fits);
  if (!fits && !prepared.empty() && route_conv(p, true).composed_because == nullptr) {
    TORCH_WARN_ONCE("squeeze_excite_conv: prepared[0] (", prepared[0].toString(), prepared[0].sizes(),
                    ") is for another layout, type or processor than those at hand (", last ? "channels_last" : "contiguous",
                    " ", x.scalar_type(), " on ", kernels().name, ") and is not used");
  }
  if (route.composed_because) return conv_composed(SENET_CONV_PASS);
  Prepared own;
  if (!fits) {
    own = prepare(weight, bias, fc1_weight, fc1_bias, side, norm_scale, norm_shift, excitation, x.scalar_type(), last);
  }
  const Tensor& packed = fits ? prepared[0] : std::get<0>(own);
  const Tensor& scale = fits ? prepared[1] : std::get<1>(own);
  const Tensor& shift = fits ? prepared[2] : std::get<2>(own);
  const Tensor& first = fits ? prepared[3] : std::get<3>(own);
  const Tensor& first_bias = fits ? prepared[4] : std::get<4>(own);
  const Weights weights = contiguous_weights(a.beside());
  const bool dense = dense_images(x, last);
  if (!dense) {
    TORCH_WARN_ONCE("squeeze_excite_conv: the images of x (shape ", x.sizes(), ", strides ", x.strides(),
                    ") are not dense in memory; x is copied");
  }
  const Tensor in = dense ? x : x.contiguous(format);
  if (!y.defined() || !y.is_contiguous(format)) {
    y = at::empty(sizes, x.options(), format);
    advise_huge_pages(y);
  }
  Tensor added;
  if (or_undefined(residual).defined()) {
    added = dense_images(*residual, last) ? *residual : residual->contiguous(format);
    p.epilogue.residual = added.const_data_ptr();
    p.epilogue.residual_batch_stride = added.stride(0);
  }
  const PrologueTensors pre(x, pre_scale, pre_shift, pre_activation);
  p.prologue = pre.prologue;
  p.x = in.const_data_ptr();
  p.x_batch_stride = in.stride(0);
  p.weight = packed.const_data_ptr();
  p.scale = scale.const_data_ptr<float>();
  p.shift = shift.const_data_ptr<float>();
  p.fc1_weight = weights.fc1_weight.const_data_ptr();
  p.fc1_bias = pointer_of(weights.fc1_bias);
  if (p.gates_output) {
    p.fc1_dtype = Dtype::f32;
    p.fc1_weight = first.const_data_ptr();
    p.fc1_bias = first_bias.const_data_ptr();
    if (p.excitation == Excitation::channel_conv) p.excitation = Excitation::one_fc;
  }
  p.fc2_weight = pointer_of(weights.fc2_weight);
  p.fc2_bias = pointer_of(weights.fc2_bias);
  p.y = y.mutable_data_ptr();
  conv(p, kernels(), route.plan, run_team);
  return y;
}

Tensor conv_cpu(SENET_CONV_ARGUMENTS) { return conv_made(SENET_CONV_PASS, {}); }

void conv_into_cpu(SENET_CONV_ARGUMENTS, const Tensor& y) {
  at::assert_no_overlap(y, x);
  const Tensor made = conv_made(SENET_CONV_PASS, y);
  if (!made.is_same(y)) y.copy_(made);
}

ForcedConvPlan& forced_conv_plan() {
  static ForcedConvPlan forced;
  return forced;
}

}  // namespace

void force_plan_conv(const ForcedConvPlan& forced) { forced_conv_plan() = forced; }

ConvRoute route_conv(const ConvParams& p, bool prepared) {
  const ForcedConvPlan& forced = forced_conv_plan();
  if (p.dtype == Dtype::f64) return {"x is float64, for which there is no matrix product here", {}};
  const ProductKernels& product = kernels().product(p.dtype);
  ConvRoute route{not_fused(p.dtype, p.pixels(), product, torch_has_amx()), {}};
  if (!route.composed_because && !prepared) {
    const std::int64_t outputs = !p.gates_output ? 0 : p.excitation == Excitation::two_fc ? p.shape.R : p.C_out;
    route.composed_because = not_worth_preparing(p.shape, outputs);
  }
  if (forced.fused) route.composed_because = *forced.fused ? nullptr : "force_plan_conv";
  if (route.composed_because) return route;
  ConvPlan& plan = route.plan;
  plan = plan_conv(p, product, machine());
  plan.stream = forced.stream.value_or(plan.stream);
  plan.threads = forced.threads.value_or(plan.threads);
  plan.images_per_tile = forced.images.value_or(plan.images_per_tile);
  plan.across = forced.across.value_or(plan.across);
  plan.channels = forced.channels.value_or(plan.channels);
  plan.tiles_a_pass = forced.tiles_a_pass.value_or(plan.tiles_a_pass);
  if (forced.pixels) plan.cut(*forced.pixels, p, product);
  return route;
}

}  // namespace senet::bindings

TORCH_LIBRARY_FRAGMENT(senet_fast, m) {
  // everything of the op that follows from the weights alone, for a processor's kernels
  m.def(torch::schema("squeeze_excite_conv_prepare(Tensor weight, Tensor? bias, Tensor fc1_weight, Tensor? fc1_bias=None, *, "
                      "str side='input', Tensor? norm_scale=None, Tensor? norm_shift=None, str excitation='two_fc', "
                      "ScalarType dtype, bool channels_last) -> (Tensor weight, Tensor scale, Tensor shift, "
                      "Tensor fc1_weight, Tensor fc1_bias)"),
        {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(senet_fast, CPU, m) {
  m.impl("squeeze_excite_conv", &senet::bindings::conv_cpu);
  m.impl("squeeze_excite_conv_into", &senet::bindings::conv_into_cpu);
}
TORCH_LIBRARY_IMPL(senet_fast, CompositeExplicitAutograd, m) {
  m.impl("squeeze_excite_conv_prepare", &senet::bindings::prepare);
}
