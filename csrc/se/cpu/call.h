// What forward and backward share: the kernels for the types at hand, pointers to images, and steps over them.
#pragma once
#include <memory>
#include <type_traits>

#include "se/cpu/kernels.h"
#include "se/cpu/plan.h"
#include "se/cpu/team.h"

namespace senet {

// A: float or double, the type of sums and excitation. Buffers are made before the team starts; its members share the object.
template <class A>
class Call {
 protected:
  using Buffer = std::unique_ptr<A[]>;

  Call(const Params& p, const Kernels& kernels, const Plan& plan)
      : shared_(p), shape_(p.shape), plan_(plan), image_{shape_.O, shape_.K, shape_.I} {
    if constexpr (sizeof(A) == 8) {
      data_ = &kernels.data_f64;
      weights_ = p.weight_dtype == Dtype::f64 ? &kernels.weight_f64 : &kernels.weight_f32_in_f64;
      activations_ = &kernels.activation_f64;
    } else {
      const auto by = [](Dtype dtype, auto& f32, auto& bf16, auto& f16) {
        return dtype == Dtype::bf16 ? &bf16 : dtype == Dtype::f16 ? &f16 : &f32;
      };
      data_ = by(p.dtype, kernels.data_f32, kernels.data_bf16, kernels.data_f16);
      weights_ = by(p.weight_dtype, kernels.weight_f32, kernels.weight_bf16, kernels.weight_f16);
      activations_ = &kernels.activation_f32;
    }
    if (plan.blocks > 1) partial_ = buffer(plan.images_per_tile * plan.blocks * shape_.K);
    if (p.excitation == Excitation::channel_conv) {
      taps_ = buffer(shape_.R);
      weights_->read(p.fc1_weight, taps_.get(), shape_.R);
    }
  }

  const Params& shared_;
  const Shape& shape_;
  const Plan plan_;
  const Image image_;
  const DataKernels<A>* data_;
  const WeightKernels<A>* weights_;
  const ActivationKernels<A>* activations_;
  Buffer partial_;                // [images of a tile, blocks, K]
  Buffer taps_;                   // of the channel convolution
  Buffer pre_scale_, pre_shift_;  // of the prologue; null without one

  void set_prologue(const Prologue& prologue) {
    if (prologue.is_identity()) return;
    const auto numbers = [&](const void* given, A otherwise) {
      Buffer made = buffer(shape_.K);
      if (given) {
        std::copy_n(static_cast<const A*>(given), shape_.K, made.get());
      } else {
        std::fill_n(made.get(), shape_.K, otherwise);
      }
      return made;
    };
    pre_scale_ = numbers(prologue.scale, 1);
    pre_shift_ = numbers(prologue.shift, 0);
  }
  // The sums of units of an image x, or of what the prologue makes of them in u.
  void squeeze(const Prologue& prologue, const void* x, void* u, std::int64_t begin, std::int64_t end, A* sums) const {
    if (!pre_scale_) return data_->squeeze(image_, x, begin, end, sums);
    // by channels a few at a time, so that u is still close; by rows the range is small, and the sums are of all of it
    const std::int64_t step = image_.by_rows() ? std::max<std::int64_t>(1, end - begin) : kGrain;
    for (std::int64_t from = begin; from < end || from == begin; from += step) {
      const std::int64_t to = std::min(from + step, end);
      data_->prologue(image_, x, pre_scale_.get(), pre_shift_.get(), prologue.activation, u, from, to);
      data_->squeeze(image_, u, from, to, sums);
    }
  }

  static Buffer buffer(std::int64_t n) { return Buffer(new A[static_cast<std::size_t>(n)]); }

  std::int64_t elements() const { return shape_.O * shape_.K * shape_.I; }
  A count() const { return A(shape_.O * shape_.I); }
  std::int64_t saved_stride() const { return shared_.saved_width(); }
  A* saved(std::int64_t image) const { return static_cast<A*>(shared_.saved) + image * saved_stride(); }
  A* hidden_input(std::int64_t image) const { return saved(image) + shape_.K; }
  A* gate_input(std::int64_t image) const { return saved(image) + shape_.K + shared_.hidden(); }

  template <class Pointer>
  Pointer at(Pointer data, std::int64_t element) const {
    using Byte = std::conditional_t<std::is_const_v<std::remove_pointer_t<Pointer>>, const char, char>;
    return static_cast<Byte*>(data) + element * item_bytes(shared_.dtype);
  }
  const void* x(std::int64_t image) const { return at(shared_.x, image * shared_.x_batch_stride); }
  const void* residual(std::int64_t image) const {
    const Epilogue& e = shared_.epilogue;
    return e.residual ? at(e.residual, image * e.residual_batch_stride) : nullptr;
  }

  // body(b, B): tiles of B images from image b on
  template <class Body>
  void for_tiles(const Body& body) const {
    for (std::int64_t b = 0; b < shape_.B; b += plan_.images_per_tile) {
      body(b, std::min(plan_.images_per_tile, shape_.B - b));
    }
  }
  template <class Body>
  void for_units(const Member& member, std::int64_t B, const Body& body, bool backwards = false) const {
    for_items(member, B, image_.units(), image_.by_rows() ? 1 : kGrain, body, backwards);
  }

  // out[i, k] = the sums of B images: per channel, or per block of rows and then the blocks joined. finish(i, begin, end)
  // follows on what is complete. The members have waited when it returns.
  template <class Kernel, class Finish>
  void sums(const Member& member, std::int64_t B, A* out, std::int64_t stride, const Kernel& kernel,
            const Finish& finish) const {
    const std::int64_t K = shape_.K, blocks = plan_.blocks, rows = plan_.rows_per_block;
    if (!image_.by_rows()) {
      for_units(member, B, [&](std::int64_t i, std::int64_t begin, std::int64_t end) {
        kernel(i, begin, end, out + i * stride);
        finish(i, begin, end);
      });
      return member.wait();
    }
    for_items(member, B, blocks, 1, [&](std::int64_t i, std::int64_t first, std::int64_t last) {
      for (std::int64_t block = first; block < last; ++block) {
        A* to = blocks == 1 ? out + i * stride : partial_.get() + (i * blocks + block) * K;
        kernel(i, block * rows, std::min((block + 1) * rows, shape_.O), to);
        if (blocks == 1) finish(i, 0, K);
      }
    });
    member.wait();
    if (blocks == 1) return;
    for_items(member, B, K, kGrain, [&](std::int64_t i, std::int64_t k0, std::int64_t k1) {
      A *to = out + i * stride, *from = partial_.get() + i * blocks * K;
      for (std::int64_t step = 1; step < blocks; step *= 2) {  // in pairs: the error grows with the logarithm
        for (std::int64_t block = 0; block + step < blocks; block += 2 * step) {
          for (std::int64_t k = k0; k < k1; ++k) from[block * K + k] += from[(block + step) * K + k];
        }
      }
      std::copy(from + k0, from + k1, to + k0);
      finish(i, k0, k1);
    });
    member.wait();
  }

  void gate(const A* z, A* scale, std::int64_t n) const {
    activations_->value(shared_.gate, z, scale, n);
    if (shared_.epilogue.add_one) {
      for (std::int64_t k = 0; k < n; ++k) scale[k] += 1;
    }
  }

  // out[k] = sum_t taps[t] * in[k + t - pad] for k in [begin, end), zeros outside; reversed: the taps from last to first
  void convolve(const A* in, bool reversed, A* out, std::int64_t begin, std::int64_t end) const {
    const std::int64_t K = shape_.K, width = shape_.R, pad = width / 2;
    std::fill(out + begin, out + end, A(0));
    for (std::int64_t t = 0; t < width; ++t) {
      const A tap = taps_[reversed ? width - 1 - t : t];
      for (std::int64_t k = std::max(begin, pad - t); k < std::min(end, K + pad - t); ++k) out[k] += tap * in[k + t - pad];
    }
  }
};

}  // namespace senet
