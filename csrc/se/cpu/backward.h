#pragma once
#include "se/cpu/call.h"

namespace senet {

template <class A>
class Backward : Call<A> {
  using Base = Call<A>;
  using Base::activations_, Base::at, Base::count, Base::data_, Base::elements, Base::gate_input, Base::hidden_input,
      Base::image_, Base::plan_, Base::saved, Base::saved_stride, Base::shape_, Base::weights_;

 public:
  Backward(const BackwardParams& p, const Kernels& kernels, const Plan& plan) : Base(p, kernels, plan), p_(p) {
    const std::int64_t B = shape_.B, K = shape_.K, R = p.hidden();
    scale_ = Base::buffer(B * K), grad_gate_ = Base::buffer(B * K);
    hidden_ = Base::buffer(B * R), grad_hidden_ = Base::buffer(B * R);
    shift_ = Base::buffer(plan.images_per_tile * K);
  }

  void operator()(const Member& member) const {
    const std::int64_t K = shape_.K;
    const bool activated = !p_.epilogue.activation.is_identity();
    for_items(member, shape_.B, K, kGrain, [&](std::int64_t b, std::int64_t begin, std::int64_t end) {
      Base::gate(gate_input(b) + begin, scale_.get() + b * K + begin, end - begin);
    });
    if (activated) member.wait();
    Base::for_tiles([&](std::int64_t b, std::int64_t B) {
      A* dz = grad_gate_.get() + b * K;
      Base::sums(
          member, B, dz, K,
          [&](std::int64_t i, std::int64_t begin, std::int64_t end, A* sums) {
            const std::int64_t image = b + i, first = image * elements();
            data_->grad_scale(image_, at(p_.grad_y, first), Base::x(image), scale_.get() + image * K, Base::residual(image),
                              p_.from_y, p_.epilogue.activation, activated ? at(p_.grad_residual, first) : nullptr, begin, end,
                              sums);
          },
          [&](std::int64_t i, std::int64_t begin, std::int64_t end) {
            A* grad = dz + i * K + begin;
            activations_->grad(p_.gate, gate_input(b + i) + begin, grad, grad, end - begin);
          });
      excite_backward(member, b, B);
      if (p_.grad_x == nullptr) return;
      member.wait();
      Base::for_units(
          member, B,
          [&](std::int64_t i, std::int64_t begin, std::int64_t end) {
            const std::int64_t image = b + i, first = image * elements();
            data_->grad_x(image_, at(activated ? p_.grad_residual : p_.grad_y, first), scale_.get() + image * K,
                          shift_.get() + i * K, at(p_.grad_x, first), plan_.stream, begin, end);
          },
          /*backwards=*/true);
    });
    weight_gradients(member);
  }

 private:
  const BackwardParams& p_;
  // of all images: the gradients of the weights sum over them. Gradients are those of the inputs of gate and activation.
  typename Base::Buffer scale_, grad_gate_, hidden_, grad_hidden_;
  typename Base::Buffer shift_;  // of a tile: what every element of a channel gets through the squeeze

  // grad_hidden_, hidden_ and shift_ of B images from grad_gate_. The members have waited for all but shift_.
  void excite_backward(const Member& member, std::int64_t b, std::int64_t B) const {
    const std::int64_t K = shape_.K, R = p_.hidden();
    const A* dz = grad_gate_.get() + b * K;
    A *dh = grad_hidden_.get() + b * R, *hidden = hidden_.get() + b * R;
    const auto divide = [&](std::int64_t i, Range k) {
      for (std::int64_t j = k.begin; j < k.end; ++j) shift_[i * K + j] /= count();
    };
    switch (p_.excitation) {
      case Excitation::two_fc:
        transposed(member, dz, B, K, p_.fc2_weight, dh, R, [&](std::int64_t i, Range r) {
          const A* z = hidden_input(b + i) + r.begin;
          A* grad = dh + i * R + r.begin;
          activations_->grad(p_.activation, z, grad, grad, r.size());
          activations_->value(p_.activation, z, hidden + i * R + r.begin, r.size());
        });
        member.wait();
        if (p_.grad_x) transposed(member, dh, B, R, p_.fc1_weight, shift_.get(), K, divide);
        break;
      case Excitation::one_fc:
        if (p_.grad_x) transposed(member, dz, B, K, p_.fc1_weight, shift_.get(), K, divide);
        break;
      case Excitation::channel_conv:
        if (!p_.grad_x) break;
        for_items(member, B, K, kGrain, [&](std::int64_t i, std::int64_t begin, std::int64_t end) {
          Base::convolve(dz + i * K, true, shift_.get() + i * K, begin, end);
          divide(i, {begin, end});
        });
        break;
    }
  }

  // out[i, n] = sum_m in[i, m] * weight[m, n], then finish(i, range of n)
  template <class Finish>
  void transposed(const Member& member, const A* in, std::int64_t B, std::int64_t M, const void* weight, A* out, std::int64_t N,
                  const Finish& finish) const {
    constexpr std::int64_t kColumns = 64;  // whole lines of weights, and a tile of the kernel
    const auto [images, n] = member.block(B, N, kColumns);
    weights_->linear_transposed(in + images.begin * M, M, weight, out + images.begin * N, N, images.size(), M, N, n.begin,
                                n.end);
    for (std::int64_t i = images.begin; i < images.end; ++i) finish(i, n);
  }

  void weight_gradients(const Member& member) const {
    const std::int64_t B = shape_.B, K = shape_.K, R = p_.hidden();
    const auto outer = [&](const A* left, std::int64_t M, const A* right, std::int64_t right_stride, std::int64_t N,
                           void* weight, void* bias) {
      if (weight == nullptr && bias == nullptr) return;
      const Range m = member.part(M, 4);
      weights_->outer(left, M, right, right_stride, weight, bias, B, N, m.begin, m.end);
    };
    switch (p_.excitation) {
      case Excitation::two_fc:
        outer(grad_hidden_.get(), R, saved(0), saved_stride(), K, p_.grad_fc1_weight, p_.grad_fc1_bias);
        outer(grad_gate_.get(), K, hidden_.get(), R, R, p_.grad_fc2_weight, p_.grad_fc2_bias);
        break;
      case Excitation::one_fc:
        outer(grad_gate_.get(), K, saved(0), saved_stride(), K, p_.grad_fc1_weight, p_.grad_fc1_bias);
        break;
      case Excitation::channel_conv: {
        const Range taps = member.part(shape_.R);
        for (std::int64_t t = taps.begin; p_.grad_fc1_weight && t < taps.end; ++t) {
          const A total = tap_gradient(t);
          weights_->write(&total, at_weight(p_.grad_fc1_weight, t), 1);
        }
        if (p_.grad_fc1_bias && member.rank == member.size - 1) {
          double total = 0;
          for (std::int64_t i = 0; i < B * K; ++i) total += grad_gate_[i];
          const A bias = A(total);
          weights_->write(&bias, p_.grad_fc1_bias, 1);
        }
        break;
      }
    }
  }

  A tap_gradient(std::int64_t t) const {
    const std::int64_t K = shape_.K, shift = t - shape_.R / 2;
    double total = 0;
    for (std::int64_t b = 0; b < shape_.B; ++b) {
      for (std::int64_t k = std::max<std::int64_t>(0, -shift); k < std::min(K, K - shift); ++k) {
        total += grad_gate_[b * K + k] * saved(b)[k + shift];
      }
    }
    return A(total);
  }
  void* at_weight(void* weight, std::int64_t i) const { return static_cast<char*>(weight) + i * item_bytes(p_.weight_dtype); }
};

}  // namespace senet
