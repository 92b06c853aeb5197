// A 1x1 convolution with a gate on its input or output channels. Per group of images: squeeze, excite, then tiles of pixels
// times blocks of output channels, whose sums are gated, added to and activated before they leave the cache.
#pragma once
#include "se/cpu/call.h"
#include "se/cpu/conv_plan.h"

namespace senet {

class ConvForward : Call<float> {
 public:
  ConvForward(const ConvParams& p, const Kernels& kernels, const ConvPlan& plan)
      : Call(p, kernels, plan), p_(p), plan_(plan), product_(kernels.product(p.dtype)) {
    const std::int64_t images = plan.images_per_tile;
    set_prologue(p.prologue);
    if (pre_scale_) u_ = buffer(images * elements() * item_bytes(p.dtype) / 4 + 17);
    steps_ = product_.steps(shape_.K);
    squeezed_ = buffer(images * shape_.K);
    hidden_ = buffer(images * p.hidden());
    scale_ = buffer(images * p.gated());
    if (p.gates_output) {
      factor_ = buffer(images * p.C_out);
      offset_ = buffer(images * p.C_out);
    }
    // Rows of x are multiplied where they lie if nothing has to be done to them: their gate may as well be on the weights,
    // of which there are fewer where the map is large. Not a choice of the plan: roundings differ.
    const bool as_they_lie = p.by_pixels && p.dtype == product_.multiplied && shape_.K % product_.per_step == 0;
    scales_weights_ = as_they_lie && !p.gates_output && 2 * p.C_out <= p.pixels();
    direct_ = as_they_lie && (p.gates_output || scales_weights_);
    panel_bytes_ = 16 * steps_ * product_.per_step * item_bytes(product_.multiplied);
    if (scales_weights_) weights_scaled_ = buffer(images * panels() * panel_bytes_ / 4 + 16);
    const std::int64_t lanes = (plan.pixels + 15) / 16 * 16;
    tile_bytes_ = direct_ ? 0 : (lanes * steps_ * product_.per_step * item_bytes(product_.multiplied) + 63) / 64 * 64;
    const std::int64_t floats = plan.tiles_a_pass * tile_bytes_ / 4 + plan.channels * (p.by_pixels ? plan.pixels : lanes);
    own_floats_ = (floats + 31) / 16 * 16;
    own_ = buffer(plan.threads * own_floats_ + 16);
    fc1_ = p.fc1_dtype == p.weight_dtype ? weights_ : &kernels.weight_f32;
    if (p.excitation == Excitation::channel_conv && p.fc1_bias) weights_->read(p.fc1_bias, &conv_bias_, 1);
  }

  void operator()(const Member& member) const {
    for_tiles([&](std::int64_t b, std::int64_t B) {
      if (u_ && b > 0) member.wait();  // until no other thread multiplies what was there
      sums(
          member, B, squeezed_.get(), shape_.K,
          [&](std::int64_t i, std::int64_t begin, std::int64_t end, float* to) {
            squeeze(p_.prologue, x(b + i), u_ ? u(i) : nullptr, begin, end, to);
          },
          [&](std::int64_t i, std::int64_t begin, std::int64_t end) {
            for (std::int64_t k = begin; k < end; ++k) squeezed_[i * shape_.K + k] /= count();
          });
      excite(member, B);
      member.wait();
      if (scales_weights_) {
        for_items(member, B, panels(), 1, [&](std::int64_t i, std::int64_t begin, std::int64_t end) {
          const auto* from = static_cast<const char*>(p_.weight) + begin * panel_bytes_;
          product_.scale_packed(from, end - begin, shape_.K, scale_.get() + i * shape_.K, scaled(i) + begin * panel_bytes_);
        });
        member.wait();
      }
      multiply(member, b, B);
    });
  }

 private:
  const ConvParams& p_;
  const ConvPlan plan_;
  const ProductKernels& product_;
  const WeightKernels<float>* fc1_;
  Buffer squeezed_, hidden_, scale_;  // of a group of images
  Buffer u_;                          // what the prologue makes of their x; null without one
  Buffer factor_, offset_;            // what sums are multiplied with and what is added, where that depends on the image
  Buffer weights_scaled_;             // of each image
  Buffer own_;                        // of each thread: tiles of x, then sums
  std::int64_t steps_, panel_bytes_, tile_bytes_, own_floats_;
  bool scales_weights_, direct_;
  float conv_bias_ = 0;

  std::int64_t panels() const { return (p_.C_out + 15) / 16; }
  static char* aligned(const Buffer& buffer) {  // to a line
    return reinterpret_cast<char*>((reinterpret_cast<std::uintptr_t>(buffer.get()) + 63) / 64 * 64);
  }
  char* u(std::int64_t i) const { return aligned(u_) + i * elements() * item_bytes(p_.dtype); }
  // What is multiplied of the group's image i, which is the image b + i.
  const void* in(std::int64_t b, std::int64_t i) const { return u_ ? u(i) : x(b + i); }
  char* scaled(std::int64_t i) const { return aligned(weights_scaled_) + i * panels() * panel_bytes_; }

  // The gate of B images; behind the convolution also what it makes of scale and shift.
  void excite(const Member& member, std::int64_t B) const {
    const std::int64_t K = shape_.K, R = p_.hidden(), G = p_.gated();
    const auto gated = [&](std::int64_t i, Range k) {
      float* s = scale_.get() + i * G;
      gate(s + k.begin, s + k.begin, k.size());
      if (!p_.gates_output) return;
      for (std::int64_t n = k.begin; n < k.end; ++n) {
        factor_[i * G + n] = p_.scale[n] * s[n];
        offset_[i * G + n] = p_.shift[n] * s[n];
      }
    };
    switch (p_.excitation) {
      case Excitation::two_fc:
        layer(member, *fc1_, squeezed_.get(), p_.fc1_weight, p_.fc1_bias, hidden_.get(), B, K, R, [&](std::int64_t i, Range r) {
          float* z = hidden_.get() + i * R + r.begin;
          activations_->value(p_.activation, z, z, r.size());
        });
        member.wait();
        layer(member, *weights_, hidden_.get(), p_.fc2_weight, p_.fc2_bias, scale_.get(), B, R, G, gated);
        break;
      case Excitation::one_fc:
        layer(member, *fc1_, squeezed_.get(), p_.fc1_weight, p_.fc1_bias, scale_.get(), B, K, G, gated);
        break;
      case Excitation::channel_conv:
        for_items(member, B, K, kGrain, [&](std::int64_t i, std::int64_t begin, std::int64_t end) {
          float* z = scale_.get() + i * K;
          convolve(squeezed_.get() + i * K, false, z, begin, end);
          for (std::int64_t k = begin; k < end; ++k) z[k] += conv_bias_;
          gated(i, {begin, end});
        });
        break;
    }
  }

  // z[i, n] = in[i] . weight[n] + bias[n], then finish(i, range of n)
  template <class Finish>
  void layer(const Member& member, const WeightKernels<float>& kernels, const float* in, const void* weight, const void* bias,
             float* z, std::int64_t B, std::int64_t M, std::int64_t N, const Finish& finish) const {
    const auto [images, n] = member.block(B, N, kGrain);
    kernels.linear(in + images.begin * M, M, weight, bias, z + images.begin * N, N, images.size(), M, n.begin, n.end);
    for (std::int64_t i = images.begin; i < images.end; ++i) finish(i, n);
  }

  // What a tile of a group's image i from pixel `first` on is, in x, y and the residual.
  struct Tile {
    std::int64_t i, first, count;
  };
  Tile tile(std::int64_t t) const {
    const std::int64_t first = t % plan_.tiles * plan_.pixels;
    return {t / plan_.tiles, first, std::min(plan_.pixels, p_.pixels() - first)};
  }

  void multiply(const Member& member, std::int64_t b, std::int64_t B) const {
    const std::int64_t K = shape_.K, N = p_.C_out, P = p_.pixels(), stride = p_.by_pixels ? K : P;
    const std::int64_t across = std::min(plan_.across, member.size), down = member.size / across;
    if (member.rank >= down * across) return;
    const Range tiles = Member{member.rank / across, down}.part(B * plan_.tiles);
    const Range channels = Member{member.rank % across, across}.part(N, kConvTile);
    char* own = aligned(own_) + member.rank * own_floats_ * 4;
    auto* sums = reinterpret_cast<float*>(own + plan_.tiles_a_pass * tile_bytes_);
    for (std::int64_t pass = tiles.begin; pass < tiles.end; pass += plan_.tiles_a_pass) {
      const std::int64_t last = std::min(pass + plan_.tiles_a_pass, tiles.end);
      for (std::int64_t t = pass; t < last && !direct_; ++t) {
        const auto [i, first, count] = tile(t);
        const float* scale = p_.gates_output ? nullptr : scale_.get() + i * K;
        const void* from = at(in(b, i), p_.by_pixels ? first * K : first);
        (p_.by_pixels ? product_.rows : product_.pack)(from, stride, count, K, scale, own + (t - pass) * tile_bytes_);
      }
      for (std::int64_t n = channels.begin; n < channels.end; n += plan_.channels) {
        for (std::int64_t t = pass; t < last; ++t) {
          const Tile of = tile(t);
          const void* left = direct_ ? at(in(b, of.i), of.first * K) : own + (t - pass) * tile_bytes_;
          block(b, of, left, n, std::min(n + plan_.channels, channels.end), sums);
        }
      }
    }
  }

  // y of a tile's pixels and the channels [begin, end)
  void block(std::int64_t b, const Tile& tile, const void* in, std::int64_t begin, std::int64_t end, float* sums) const {
    const std::int64_t N = p_.C_out, P = p_.pixels(), row = steps_ * product_.per_step;
    const float *scale = p_.gates_output ? factor_.get() + tile.i * N : p_.scale,
                *shift = p_.gates_output ? offset_.get() + tile.i * N : p_.shift;
    const auto* weight = scales_weights_ ? scaled(tile.i) : static_cast<const char*>(p_.weight);
    weight += begin * row * item_bytes(product_.multiplied);
    const std::int64_t image = b + tile.i, to = p_.by_pixels ? tile.first * N + begin : begin * P + tile.first;
    const void* added = residual(image);
    if (added) added = at(added, to);
    void* y = at(p_.y, image * P * N + to);
    if (added)
      prefetch(added, p_.by_pixels ? tile.count : end - begin, p_.by_pixels ? end - begin : tile.count, p_.by_pixels ? N : P);
    if (p_.by_pixels) {
      product_.multiply(tile.count, end - begin, steps_, in, row, weight, sums, plan_.channels);
      product_.finish(sums, plan_.channels, tile.count, end - begin, scale + begin, shift + begin, false, added,
                      p_.epilogue.activation, y, N, plan_.stream);
    } else {
      const std::int64_t stride = (tile.count + 15) / 16 * 16;
      product_.multiply(end - begin, tile.count, steps_, weight, row, in, sums, stride);
      product_.finish(sums, stride, end - begin, tile.count, scale + begin, shift + begin, true, added, p_.epilogue.activation,
                      y, P, plan_.stream);
    }
  }

  // Pieces of rows far apart are no pattern that a processor would fetch ahead by itself, and there is time: a product.
  void prefetch(const void* from, std::int64_t rows, std::int64_t columns, std::int64_t stride) const {
    constexpr std::int64_t kLine = 64;
    const std::int64_t bytes = item_bytes(p_.dtype);
    for (std::int64_t row = 0; row < rows; ++row) {
      const char* piece = static_cast<const char*>(from) + row * stride * bytes;
      for (std::int64_t at = 0; at < columns * bytes; at += kLine) __builtin_prefetch(piece + at);
    }
  }
};

template <class RunTeam>
void conv(const ConvParams& p, const Kernels& kernels, const ConvPlan& plan, const RunTeam& run_team) {
  run_team(plan.threads, ConvForward(p, kernels, plan));
}

}  // namespace senet
