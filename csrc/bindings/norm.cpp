// BatchNorm beside SE. In training: the whole-map passes of senet_fast/se/norm.py, on the CPU, float32 and float64. At
// inference: fold_norm, what a BatchNorm is then.
#include <ATen/Dispatch.h>
#include <ATen/TensorOperators.h>
#include <ATen/TensorSubclassLikeUtils.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/rsqrt.h>
#include <torch/library.h>

#include <cmath>

#include "bindings/arguments.h"
#include "bindings/cpu.h"
#include "bindings/team.h"
#include "se/cpu/norm.h"

namespace senet::bindings::norm {
namespace {

// x [B, C, H, W], contiguous or channels_last, as [B, O, K, I].
Image image_of(const Tensor& x) {
  TORCH_CHECK_VALUE(x.dim() == 4, "norm: x is ", x.sizes(), "; expected [B, C, H, W]");
  const std::int64_t K = x.size(1), pixels = x.size(2) * x.size(3);
  if (x.is_contiguous()) return {1, K, pixels};
  TORCH_CHECK_VALUE(x.is_contiguous(at::MemoryFormat::ChannelsLast), "norm: x has strides ", x.strides(),
                    "; expected a contiguous or channels_last tensor");
  return {pixels, K, 1};
}

void check_map(const Tensor& t, const char* name, const Tensor& x) {
  TORCH_CHECK_VALUE(t.sizes() == x.sizes() && t.strides() == x.strides() && t.scalar_type() == x.scalar_type(), "norm: ", name,
                    " is ", t.toString(), t.sizes(), "; expected shape, strides and type of x, ", x.toString(), x.sizes());
}

void check_numbers(const Tensor& t, const char* name, const Tensor& x) {
  TORCH_CHECK_VALUE(t.dim() == 2 && t.size(0) == x.size(0) && t.size(1) == x.size(1) && t.is_contiguous() &&
                        t.scalar_type() == x.scalar_type(),
                    "norm: ", name, " is ", t.toString(), t.sizes(), "; expected contiguous ", x.toString(), "[", x.size(0),
                    ", ", x.size(1), "]");
}

Tensor numbers(const Tensor& x) { return at::empty({x.size(0), x.size(1)}, x.options()); }

template <class A>
const A* in(const Tensor& t) {
  return t.const_data_ptr<A>();
}
template <class A>
A* out(const Tensor& t) {
  return t.mutable_data_ptr<A>();
}

// A pass over x by a team, which reads or writes so many maps.
template <class A, class Pass, class... Pointers>
void run(const Tensor& x, std::int64_t maps, Pass pass, Pointers... pointers) {
  const NormPasses<A> passes{kernels().norm(A()), image_of(x), x.size(0)};
  const std::int64_t bytes = maps * static_cast<std::int64_t>(x.nbytes());
  const std::int64_t threads = with_forced({.threads = threads_for(bytes, machine())}).threads;
  run_team(threads, [&](const Member& member) { (passes.*pass)(member, pointers...); });
}

std::tuple<Tensor, Tensor> moments(const Tensor& x) {
  image_of(x);
  Tensor mean = numbers(x), squares = numbers(x);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "norm", [&] {
    using A = scalar_t;
    run<A>(x, 1, &NormPasses<A>::moments, in<A>(x), out<A>(mean), out<A>(squares));
  });
  return {mean, squares};
}

Tensor apply(const Tensor& x, const Tensor& mean, const Tensor& scale, const Tensor& shift, const Tensor& residual) {
  image_of(x);
  check_map(residual, "residual", x);
  check_numbers(mean, "mean", x);
  check_numbers(scale, "scale", x);
  check_numbers(shift, "shift", x);
  Tensor y = at::empty_like(x);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "norm", [&] {
    using A = scalar_t;
    run<A>(x, 3, &NormPasses<A>::apply, in<A>(x), in<A>(mean), in<A>(scale), in<A>(shift), in<A>(residual), out<A>(y));
  });
  return y;
}

std::tuple<Tensor, Tensor> sums(const Tensor& grad_y, const Tensor& y, const Tensor& x, const Tensor& mean) {
  image_of(x);
  check_map(grad_y, "grad_y", x);
  check_map(y, "y", x);
  check_numbers(mean, "mean", x);
  Tensor grads = numbers(x), products = numbers(x);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "norm", [&] {
    using A = scalar_t;
    run<A>(x, 3, &NormPasses<A>::sums, in<A>(grad_y), in<A>(y), in<A>(x), in<A>(mean), out<A>(grads), out<A>(products));
  });
  return {grads, products};
}

std::tuple<Tensor, Tensor> gradients(const Tensor& grad_y, const Tensor& y, const Tensor& x, const Tensor& mean,
                                     const Tensor& scale, const Tensor& slope, const Tensor& offset) {
  image_of(x);
  check_map(grad_y, "grad_y", x);
  check_map(y, "y", x);
  check_numbers(mean, "mean", x);
  check_numbers(scale, "scale", x);
  check_numbers(slope, "slope", x);
  check_numbers(offset, "offset", x);
  Tensor grad_x = at::empty_like(x), grad_residual = at::empty_like(x);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "norm", [&] {
    using A = scalar_t;
    run<A>(x, 5, &NormPasses<A>::gradients, in<A>(grad_y), in<A>(y), in<A>(x), in<A>(mean), in<A>(scale), in<A>(slope),
           in<A>(offset), out<A>(grad_x), out<A>(grad_residual));
  });
  return {grad_x, grad_residual};
}

// y = x * scale + shift of a BatchNorm that normalises by mean and var, [C] each. Six small ops, or one loop where nothing
// watches them: they cost as much as a block of SE on a small map.
std::tuple<Tensor, Tensor> fold_norm(const Tensor& mean, const Tensor& var, const OptionalTensor& weight,
                                     const OptionalTensor& bias, double eps) {
  const auto plain = [&](const OptionalTensor& t) {
    return !t.has_value() ||
           (!at::isTensorSubclassLike(*t) && t->is_cpu() && t->scalar_type() == at::kFloat && !t->is_neg() &&
            !t->_is_zerotensor() && t->is_contiguous() && t->sizes() == mean.sizes() && !t->_fw_grad(0).defined());
  };
  if (!at::GradMode::is_enabled() && plain(mean) && plain(var) && plain(weight) && plain(bias)) {
    Tensor scale = at::empty(mean.sizes(), mean.options()), shift = at::empty(mean.sizes(), mean.options());
    const auto numbers = [](const OptionalTensor& t) { return t.has_value() ? t->const_data_ptr<float>() : nullptr; };
    const float *m = numbers(mean), *v = numbers(var), *w = numbers(weight), *b = numbers(bias);
    float *to_scale = scale.data_ptr<float>(), *to_shift = shift.data_ptr<float>();
    for (std::int64_t c = 0; c < mean.numel(); ++c) {
      const float root = 1 / std::sqrt(v[c] + static_cast<float>(eps));
      to_scale[c] = w ? root * w[c] : root;
      to_shift[c] = (b ? b[c] : 0) - m[c] * to_scale[c];
    }
    return {scale, shift};
  }
  Tensor scale = at::rsqrt(var + eps);
  if (weight.has_value()) scale = scale * *weight;
  const Tensor shift = -mean * scale;
  return {scale, bias.has_value() ? shift + *bias : shift};
}

}  // namespace
}  // namespace senet::bindings::norm

TORCH_LIBRARY_IMPL(senet_fast, CompositeImplicitAutograd, m) { m.impl("fold_norm", &senet::bindings::norm::fold_norm); }
TORCH_LIBRARY_IMPL(senet_fast, FuncTorchBatchedDecomposition, m) { m.impl("fold_norm", &senet::bindings::norm::fold_norm); }

TORCH_LIBRARY_FRAGMENT(senet_fast, m) {
  m.def("fold_norm(Tensor mean, Tensor var, Tensor? weight, Tensor? bias, float eps) -> (Tensor scale, Tensor shift)");
  m.def("norm_moments(Tensor x) -> (Tensor mean, Tensor squares)");
  m.def("norm_apply(Tensor x, Tensor mean, Tensor scale, Tensor shift, Tensor residual) -> Tensor");
  m.def("norm_sums(Tensor grad_y, Tensor y, Tensor x, Tensor mean) -> (Tensor grads, Tensor products)");
  m.def(
      "norm_gradients(Tensor grad_y, Tensor y, Tensor x, Tensor mean, Tensor scale, Tensor slope, Tensor offset) -> "
      "(Tensor grad_x, Tensor grad_residual)");
}

TORCH_LIBRARY_IMPL(senet_fast, CPU, m) {
  m.impl("norm_moments", &senet::bindings::norm::moments);
  m.impl("norm_apply", &senet::bindings::norm::apply);
  m.impl("norm_sums", &senet::bindings::norm::sums);
  m.impl("norm_gradients", &senet::bindings::norm::gradients);
}
