// The order of steps, forward and backward, over the kernels of one ISA. The caller brings the threads:
// parallel_for(n, grain, body) calls body(begin, end) on ranges that cover [0, n), at most one per `grain` items.
#pragma once
#include <memory>

#include "se/cpu/plan.h"

namespace senet {

// What the CPU kernels cannot do with these parameters, or null.
inline const char* unsupported(const Params& p) {
  const bool prologue = p.prologue.scale || p.prologue.shift || !p.prologue.activation.is_identity();
  return prologue ? "a prologue" : nullptr;
}

inline std::int64_t item_bytes(Dtype dtype) { return dtype == Dtype::f64 ? 8 : dtype == Dtype::f32 ? 4 : 2; }

inline std::int64_t weight_elements(const Params& p) {
  const Shape& s = p.shape;
  return p.excitation == Excitation::two_fc ? 2 * s.R * s.K : p.excitation == Excitation::one_fc ? s.K * s.K : s.R;
}

inline Plan plan(const Params& p, std::int64_t cache_bytes) {
  return plan(p.shape, item_bytes(p.dtype), weight_elements(p) * item_bytes(p.weight_dtype), cache_bytes);
}

template <class A, class ParallelFor>
class Drive {
 public:
  Drive(const Params& p, const Kernels& kernels, const Plan& plan, const ParallelFor& parallel_for)
      : p_(p), shape_(p.shape), plan_(plan), parallel_for_(parallel_for), image_{shape_.O, shape_.K, shape_.I} {
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
  }

  void forward(const ForwardParams& p) {
    const std::int64_t tile = plan_.images_per_tile, K = shape_.K;
    Buffer hidden = buffer(tile * p.hidden()), scale = buffer(tile * K), partial = partial_sums(tile);
    for (std::int64_t b = 0; b < shape_.B; b += tile) {
      const std::int64_t B = std::min(tile, shape_.B - b);
      sums(b, B, saved(b), saved_stride(), count(), partial.get(),
           [&](std::int64_t image, std::int64_t begin, std::int64_t end, A* out) {
             data_->squeeze(image_, at(p.x, image * p.x_batch_stride), begin, end, out);
           });
      excite(p, b, B, hidden.get(), scale.get());
      units(B, [&](std::int64_t i, std::int64_t begin, std::int64_t end) {
        const std::int64_t image = b + i;
        data_->scale(image_, at(p.x, image * p.x_batch_stride), scale.get() + i * K, residual(image), p.epilogue.activation,
                     at(p.y, image * elements()), begin, end);
      });
    }
  }

  void backward(const BackwardParams& p) {
    const std::int64_t tile = plan_.images_per_tile, K = shape_.K, R = p.hidden();
    const bool activated = !p.epilogue.activation.is_identity();
    // grad_gate and grad_hidden: of the inputs of gate and activation, for all images, since the weights' gradients sum over
    // them
    Buffer grad_gate = buffer(shape_.B * K), grad_hidden = buffer(shape_.B * R), hidden = buffer(shape_.B * R);
    Buffer scale = buffer(tile * K), shift = buffer(tile * K), partial = partial_sums(tile);
    for (std::int64_t b = 0; b < shape_.B; b += tile) {
      const std::int64_t B = std::min(tile, shape_.B - b);
      A *dz = grad_gate.get() + b * K, *dh = grad_hidden.get() + b * R;
      columns(B, K, [&](std::int64_t i, std::int64_t begin, std::int64_t end) {
        gate(saved(b + i) + K + R + begin, scale.get() + i * K + begin, end - begin);
      });
      sums(b, B, dz, K, A(1), partial.get(), [&](std::int64_t image, std::int64_t begin, std::int64_t end, A* out) {
        data_->grad_scale(image_, at(p.grad_y, image * elements()), at(p.x, image * p.x_batch_stride),
                          scale.get() + (image - b) * K, residual(image), p.epilogue.activation,
                          activated ? at(p.grad_residual, image * elements()) : nullptr, begin, end, out);
      });
      columns(B, K, [&](std::int64_t i, std::int64_t begin, std::int64_t end) {
        A* grad = dz + i * K + begin;
        activations_->grad(p.gate, saved(b + i) + K + R + begin, grad, grad, end - begin);
      });
      excite_backward(p, b, B, dz, dh, hidden.get() + b * R, shift.get());
      if (p.grad_x == nullptr) continue;
      units(B, [&](std::int64_t i, std::int64_t begin, std::int64_t end) {
        const std::int64_t image = b + i;
        data_->grad_x(image_, at(activated ? p.grad_residual : p.grad_y, image * elements()), scale.get() + i * K,
                      shift.get() + i * K, at(p.grad_x, image * elements()), begin, end);
      });
    }
    weight_gradients(p, grad_gate.get(), grad_hidden.get(), hidden.get());
  }

 private:
  using Buffer = std::unique_ptr<A[]>;

  const Params& p_;
  const Shape& shape_;
  const Plan plan_;
  const ParallelFor& parallel_for_;
  const Image image_;
  const DataKernels<A>* data_;
  const WeightKernels<A>* weights_;
  const ActivationKernels<A>* activations_;

  static Buffer buffer(std::int64_t n) { return Buffer(new A[static_cast<std::size_t>(n)]); }
  Buffer partial_sums(std::int64_t images) const { return buffer(plan_.blocks > 1 ? images * plan_.blocks * shape_.K : 0); }

  std::int64_t elements() const { return shape_.O * shape_.K * shape_.I; }
  A count() const { return A(shape_.O * shape_.I); }
  std::int64_t saved_stride() const { return p_.saved_width(); }
  A* saved(std::int64_t image) const { return static_cast<A*>(p_.saved) + image * saved_stride(); }

  template <class Pointer>
  Pointer at(Pointer data, std::int64_t element) const {
    using Byte = std::conditional_t<std::is_const_v<std::remove_pointer_t<Pointer>>, const char, char>;
    return static_cast<Byte*>(data) + element * item_bytes(p_.dtype);
  }
  const void* residual(std::int64_t image) const {
    return p_.epilogue.residual ? at(p_.epilogue.residual, image * p_.epilogue.residual_batch_stride) : nullptr;
  }

  // body(begin, end) over [0, n) where an item costs `work` reads or multiplications
  template <class Body>
  void for_range(std::int64_t n, std::int64_t work, const Body& body) const {
    constexpr std::int64_t kGrain = 16384;  // less than this is not worth waking a thread for
    if (n > 0) parallel_for_(n, std::max<std::int64_t>(1, kGrain / std::max<std::int64_t>(1, work)), body);
  }
  // body(image, begin, end) for the pieces of [begin, end) that lie in one image of `width` items
  template <class Body>
  static void for_images(std::int64_t begin, std::int64_t end, std::int64_t width, const Body& body) {
    while (begin < end) {
      const std::int64_t i = begin / width, last = std::min(end, (i + 1) * width);
      body(i, begin - i * width, last - i * width);
      begin = last;
    }
  }
  // body(i, begin, end) over the units of B images, in parallel
  template <class Body>
  void units(std::int64_t B, const Body& body) const {
    const std::int64_t width = image_.units();
    for_range(B * width, image_.elements_per_unit(),
              [&](std::int64_t begin, std::int64_t end) { for_images(begin, end, width, body); });
  }
  // body(i, begin, end) over `width` numbers of each of B images, in parallel; about a dozen operations on each
  template <class Body>
  void columns(std::int64_t B, std::int64_t width, const Body& body) const {
    for_range(B * width, 8, [&](std::int64_t begin, std::int64_t end) { for_images(begin, end, width, body); });
  }

  // out[i, k] = sums / divisor of B images from image b on: per channel, or per block of rows and then the blocks joined.
  template <class Kernel>
  void sums(std::int64_t b, std::int64_t B, A* out, std::int64_t stride, A divisor, A* partial, const Kernel& kernel) const {
    const std::int64_t K = shape_.K, blocks = plan_.blocks;
    const auto divide = [&](A* sums, std::int64_t begin, std::int64_t end) {
      for (std::int64_t k = begin; k < end; ++k) sums[k] /= divisor;
    };
    if (!image_.by_rows()) {
      units(B, [&](std::int64_t i, std::int64_t begin, std::int64_t end) {
        kernel(b + i, begin, end, out + i * stride);
        divide(out + i * stride, begin, end);
      });
      return;
    }
    const std::int64_t rows = plan_.rows_per_block;
    for_range(B * blocks, rows * K, [&](std::int64_t begin, std::int64_t end) {
      for_images(begin, end, blocks, [&](std::int64_t i, std::int64_t first, std::int64_t last) {
        for (std::int64_t block = first; block < last; ++block) {
          A* to = blocks == 1 ? out + i * stride : partial + (i * blocks + block) * K;
          kernel(b + i, block * rows, std::min((block + 1) * rows, shape_.O), to);
          if (blocks == 1) divide(to, 0, K);
        }
      });
    });
    if (blocks == 1) return;
    for_range(B * K, blocks, [&](std::int64_t begin, std::int64_t end) {
      for_images(begin, end, K, [&](std::int64_t i, std::int64_t k0, std::int64_t k1) {
        A *to = out + i * stride, *from = partial + i * blocks * K;
        for (std::int64_t step = 1; step < blocks; step *= 2) {  // in pairs: the error grows with the logarithm
          for (std::int64_t block = 0; block + step < blocks; block += 2 * step) {
            for (std::int64_t k = k0; k < k1; ++k) from[block * K + k] += from[(block + step) * K + k];
          }
        }
        for (std::int64_t k = k0; k < k1; ++k) to[k] = from[k];
        divide(to, k0, k1);
      });
    });
  }

  void gate(const A* z, A* scale, std::int64_t n) const {
    activations_->value(p_.gate, z, scale, n);
    if (p_.epilogue.add_one) {
      for (std::int64_t k = 0; k < n; ++k) scale[k] += 1;
    }
  }

  // A layer over B images: z[i, n] = in[i] . weight[n] + bias[n], then finish(i, n0, n) on pieces of each image.
  template <class Finish>
  void layer(const A* in, std::int64_t in_stride, const void* weight, const void* bias, A* z, std::int64_t B, std::int64_t M,
             std::int64_t N, const Finish& finish) const {
    for_range(N, B * M, [&](std::int64_t begin, std::int64_t end) {
      weights_->linear(in, in_stride, weight, bias, z, saved_stride(), B, M, begin, end);
      for (std::int64_t i = 0; i < B; ++i) finish(i, begin, end - begin);
    });
  }

  void excite(const ForwardParams& p, std::int64_t b, std::int64_t B, A* hidden, A* scale) const {
    const std::int64_t K = shape_.K, R = p.hidden();
    A *squeezed = saved(b), *hidden_input = squeezed + K, *gate_input = squeezed + K + R;
    const auto gated = [&](std::int64_t i, std::int64_t begin, std::int64_t n) {
      gate(gate_input + i * saved_stride() + begin, scale + i * K + begin, n);
    };
    switch (p.excitation) {
      case Excitation::two_fc:
        layer(squeezed, saved_stride(), p.fc1_weight, p.fc1_bias, hidden_input, B, K, R,
              [&](std::int64_t i, std::int64_t begin, std::int64_t n) {
                activations_->value(p.activation, hidden_input + i * saved_stride() + begin, hidden + i * R + begin, n);
              });
        layer(hidden, R, p.fc2_weight, p.fc2_bias, gate_input, B, R, K, gated);
        break;
      case Excitation::one_fc:
        layer(squeezed, saved_stride(), p.fc1_weight, p.fc1_bias, gate_input, B, K, K, gated);
        break;
      case Excitation::channel_conv: {
        const Buffer taps = read(p.fc1_weight, shape_.R), bias = read(p.fc1_bias, 1);
        for (std::int64_t i = 0; i < B; ++i) {
          A* z = gate_input + i * saved_stride();
          convolve(squeezed + i * saved_stride(), taps.get(), false, z);
          for (std::int64_t k = 0; k < K; ++k) z[k] += bias[0];
          gated(i, 0, K);
        }
        break;
      }
    }
  }

  // From dz, the gradient of the gate's input: dh, that of the activation's input, hidden, the activation's output (needed
  // for the weights' gradients), and shift, what every element of a channel gets through the squeeze.
  void excite_backward(const BackwardParams& p, std::int64_t b, std::int64_t B, const A* dz, A* dh, A* hidden, A* shift) const {
    const std::int64_t K = shape_.K, R = p.hidden();
    const auto transposed = [&](const A* in, std::int64_t M, const void* weight, A* out, std::int64_t N) {
      constexpr std::int64_t kColumns = 64;  // a task's columns: whole cache lines of weights
      const std::int64_t tasks = (N + kColumns - 1) / kColumns;
      for_range(tasks, B * M * kColumns, [&](std::int64_t begin, std::int64_t end) {
        weights_->linear_transposed(in, M, weight, out, N, B, M, N, begin * kColumns, std::min(end * kColumns, N));
      });
    };
    switch (p.excitation) {
      case Excitation::two_fc:
        transposed(dz, K, p.fc2_weight, dh, R);
        columns(B, R, [&](std::int64_t i, std::int64_t begin, std::int64_t end) {
          const A* z = saved(b + i) + K + begin;
          A* grad = dh + i * R + begin;
          activations_->grad(p.activation, z, grad, grad, end - begin);
          activations_->value(p.activation, z, hidden + i * R + begin, end - begin);
        });
        if (p.grad_x) transposed(dh, R, p.fc1_weight, shift, K);
        break;
      case Excitation::one_fc:
        if (p.grad_x) transposed(dz, K, p.fc1_weight, shift, K);
        break;
      case Excitation::channel_conv:
        if (p.grad_x) {
          const Buffer taps = read(p.fc1_weight, shape_.R);
          for (std::int64_t i = 0; i < B; ++i) convolve(dz + i * K, taps.get(), true, shift + i * K);
        }
        break;
    }
    if (p.grad_x) {
      columns(B, K, [&](std::int64_t i, std::int64_t begin, std::int64_t end) {
        for (std::int64_t k = begin; k < end; ++k) shift[i * K + k] /= count();
      });
    }
  }

  void weight_gradients(const BackwardParams& p, const A* dz, const A* dh, const A* hidden) const {
    const std::int64_t B = shape_.B, K = shape_.K, R = p.hidden();
    const auto outer = [&](const A* left, std::int64_t M, const A* right, std::int64_t right_stride, std::int64_t N,
                           void* weight, void* bias) {
      if (weight == nullptr && bias == nullptr) return;
      for_range(M, B * N, [&](std::int64_t begin, std::int64_t end) {
        weights_->outer(left, M, right, right_stride, weight, bias, B, N, begin, end);
      });
    };
    switch (p.excitation) {
      case Excitation::two_fc:
        outer(dh, R, saved(0), saved_stride(), K, p.grad_fc1_weight, p.grad_fc1_bias);
        outer(dz, K, hidden, R, R, p.grad_fc2_weight, p.grad_fc2_bias);
        break;
      case Excitation::one_fc:
        outer(dz, K, saved(0), saved_stride(), K, p.grad_fc1_weight, p.grad_fc1_bias);
        break;
      case Excitation::channel_conv: {
        const std::int64_t width = shape_.R, pad = width / 2;
        Buffer taps = buffer(width);
        double bias = 0;
        for (std::int64_t t = 0; t < width; ++t) {
          double total = 0;
          for (std::int64_t b = 0; b < B; ++b) {
            for (std::int64_t k = std::max<std::int64_t>(0, pad - t); k < std::min(K, K + pad - t); ++k) {
              total += dz[b * K + k] * saved(b)[k + t - pad];
            }
          }
          taps[t] = A(total);
        }
        for (std::int64_t i = 0; i < B * K; ++i) bias += dz[i];
        if (p.grad_fc1_weight) weights_->write(taps.get(), p.grad_fc1_weight, width);
        const A bias_gradient = A(bias);
        if (p.grad_fc1_bias) weights_->write(&bias_gradient, p.grad_fc1_bias, 1);
        break;
      }
    }
  }

  Buffer read(const void* weight, std::int64_t n) const {  // zeros for a null pointer
    Buffer values(new A[static_cast<std::size_t>(n)]());
    if (weight) weights_->read(weight, values.get(), n);
    return values;
  }
  // out[k] = sum_t taps[t] * in[k + t - pad], zeros outside; reversed: with the taps from last to first
  void convolve(const A* in, const A* taps, bool reversed, A* out) const {
    const std::int64_t K = shape_.K, width = shape_.R, pad = width / 2;
    for (std::int64_t k = 0; k < K; ++k) out[k] = 0;
    for (std::int64_t t = 0; t < width; ++t) {
      const A tap = taps[reversed ? width - 1 - t : t];
      for (std::int64_t k = std::max<std::int64_t>(0, pad - t); k < std::min(K, K + pad - t); ++k)
        out[k] += tap * in[k + t - pad];
    }
  }
};

template <class ParallelFor>
void forward(const ForwardParams& p, const Kernels& kernels, const Plan& plan, const ParallelFor& parallel_for) {
  if (p.dtype == Dtype::f64) {
    Drive<double, ParallelFor>(p, kernels, plan, parallel_for).forward(p);
  } else {
    Drive<float, ParallelFor>(p, kernels, plan, parallel_for).forward(p);
  }
}

template <class ParallelFor>
void backward(const BackwardParams& p, const Kernels& kernels, const Plan& plan, const ParallelFor& parallel_for) {
  if (p.dtype == Dtype::f64) {
    Drive<double, ParallelFor>(p, kernels, plan, parallel_for).backward(p);
  } else {
    Drive<float, ParallelFor>(p, kernels, plan, parallel_for).backward(p);
  }
}

}  // namespace senet
