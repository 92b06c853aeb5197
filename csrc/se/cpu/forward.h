#pragma once
#include "se/cpu/call.h"

namespace senet {

template <class A>
class Forward : Call<A> {
  using Base = Call<A>;
  using Base::activations_, Base::at, Base::count, Base::data_, Base::gate, Base::gate_input, Base::hidden_input, Base::image_,
      Base::plan_, Base::pre_scale_, Base::residual, Base::saved, Base::saved_stride, Base::shape_, Base::weights_;

 public:
  Forward(const ForwardParams& p, const Kernels& kernels, const Plan& plan) : Base(p, kernels, plan), p_(p) {
    hidden_ = Base::buffer(plan.images_per_tile * p.hidden());
    scale_ = Base::buffer(plan.images_per_tile * shape_.K);
    Base::set_prologue(p.prologue);
    if (p.excitation == Excitation::channel_conv && p.fc1_bias) weights_->read(p.fc1_bias, &conv_bias_, 1);
  }

  void operator()(const Member& member) const {
    const bool overlap = plan_.overlap && !pre_scale_;
    Base::for_tiles([&](std::int64_t b, std::int64_t B) {
      const std::int64_t next = b + B, ahead = overlap ? std::min(B, shape_.B - next) : 0;
      if (b == 0 || !overlap) {
        squeeze_tile(member, b, B, [&](std::int64_t i, std::int64_t begin, std::int64_t end, A* sums) {
          Base::squeeze(p_.prologue, Base::x(b + i), y(b + i), begin, end, sums);
        });
      }
      excite(member, b, B);
      member.wait();
      if (ahead > 0) {
        squeeze_tile(member, next, ahead, [&](std::int64_t i, std::int64_t begin, std::int64_t end, A* sums) {
          data_->scale_squeeze(image_, Base::x(b + i), scale(i), residual(b + i), p_.epilogue.activation, y(b + i),
                               plan_.stream, Base::x(next + i), begin, end, sums);
        });
      }
      Base::for_units(
          member, B - ahead,
          [&](std::int64_t i, std::int64_t begin, std::int64_t end) {
            const std::int64_t image = b + ahead + i;
            data_->scale(image_, u(image), scale(ahead + i), residual(image), p_.epilogue.activation, y(image), plan_.stream,
                         begin, end);
          },
          /*backwards=*/true);
    });
  }

 private:
  const ForwardParams& p_;
  typename Base::Buffer hidden_, scale_;  // of a tile
  A conv_bias_ = 0;

  void* y(std::int64_t image) const { return at(p_.y, image * p_.y_batch_stride); }
  // what is squeezed and scaled: x, or what the prologue makes of it, which waits in y
  const void* u(std::int64_t image) const { return pre_scale_ ? y(image) : Base::x(image); }

  A* scale(std::int64_t i) const { return scale_.get() + i * shape_.K; }

  // saved(b)[K] of B images from what kernel(i, begin, end, sums) sums
  template <class Kernel>
  void squeeze_tile(const Member& member, std::int64_t b, std::int64_t B, const Kernel& kernel) const {
    Base::sums(member, B, saved(b), saved_stride(), kernel, [&](std::int64_t i, std::int64_t begin, std::int64_t end) {
      for (std::int64_t k = begin; k < end; ++k) saved(b + i)[k] /= count();
    });
  }

  // scale_ from the squeezed of B images
  void excite(const Member& member, std::int64_t b, std::int64_t B) const {
    const std::int64_t K = shape_.K, R = p_.hidden();
    const auto gated = [&](std::int64_t i, Range k) { gate(gate_input(b + i) + k.begin, scale(i) + k.begin, k.size()); };
    switch (p_.excitation) {
      case Excitation::two_fc:
        layer(member, saved(b), saved_stride(), p_.fc1_weight, p_.fc1_bias, hidden_input(b), B, K, R,
              [&](std::int64_t i, Range r) {
                activations_->value(p_.activation, hidden_input(b + i) + r.begin, hidden_.get() + i * R + r.begin, r.size());
              });
        member.wait();
        layer(member, hidden_.get(), R, p_.fc2_weight, p_.fc2_bias, gate_input(b), B, R, K, gated);
        break;
      case Excitation::one_fc:
        layer(member, saved(b), saved_stride(), p_.fc1_weight, p_.fc1_bias, gate_input(b), B, K, K, gated);
        break;
      case Excitation::channel_conv:
        for_items(member, B, K, kGrain, [&](std::int64_t i, std::int64_t begin, std::int64_t end) {
          A* z = gate_input(b + i);
          Base::convolve(saved(b + i), false, z, begin, end);
          for (std::int64_t k = begin; k < end; ++k) z[k] += conv_bias_;
          gated(i, {begin, end});
        });
        break;
    }
  }

  // z[i, n] = in[i] . weight[n] + bias[n], in rows of saved(), then finish(i, range of n)
  template <class Finish>
  void layer(const Member& member, const A* in, std::int64_t in_stride, const void* weight, const void* bias, A* z,
             std::int64_t B, std::int64_t M, std::int64_t N, const Finish& finish) const {
    const auto [images, n] = member.block(B, N, kGrain);
    weights_->linear(in + images.begin * in_stride, in_stride, weight, bias, z + images.begin * saved_stride(), saved_stride(),
                     images.size(), M, n.begin, n.end);
    for (std::int64_t i = images.begin; i < images.end; ++i) finish(i, n);
  }
};

}  // namespace senet
