// What is the same in the ticket and in the cluster kernel's backward.
//
// With v = x * s + residual, y = activation(v) and grad_v the gradient of v (with from_y taken at y): everything that gate and
// layers pass back is linear in the sums of grad_v * x, so tiles pass on shares of it, as in forward.
#pragma once
#include "se/cuda/sums.cuh"

namespace senet::cuda {

struct BackwardCall {
  BackwardParams p;
  Image image;
  double elements;  // that a channel is the mean of
  std::int64_t saved_stride, image_stride;
  bool activated;
  // The gradient of v is 0 up to lo and from hi on, of which each may be NaN, for nowhere; where that is not possible it is a
  // call.
  bool closes;
  float lo, hi;
};

inline bool is_general(const BackwardParams& p) {
  const ActivationKind post = p.epilogue.activation.kind;
  return post != ActivationKind::identity && post != ActivationKind::relu && post != ActivationKind::relu6;
}

inline BackwardCall call_of(const BackwardParams& p, const Tiles& tiles, int lanes, SumRoom room) {
  Shape shape = p.shape;
  if (shape.O * shape.I == 0) shape.O = 0, shape.I = 1;
  const Activation& post = p.epilogue.activation;
  return {p,
          {shape, tiles, lanes, room},
          static_cast<double>(shape.O * shape.I),
          p.saved_width(),
          shape.O * shape.K * shape.I,
          !post.is_identity(),
          !is_general(p),
          post.is_identity() ? kNowhere : 0.0f,
          post.kind == ActivationKind::relu6 ? 6.0f : kNowhere};
}

// What the gradients of the weights are sums of, in the type of sums.
struct WeightSums {
  void* grad_gate;    // [B, K], of the gate's input
  void* hidden;       // [B, R], two_fc only, as the next
  void* grad_hidden;  // [B, R], of the activation's input
};
inline WeightSums weight_sums(const BackwardParams& p, Scratch& scratch) {
  const auto [B, O, K, I, R] = p.shape;
  WeightSums sums{scratch.take(B * K), nullptr, nullptr};
  if (p.excitation == Excitation::two_fc) sums.hidden = scratch.take(B * R), sums.grad_hidden = scratch.take(B * R);
  return sums;
}

template <class T, class W, bool kGeneral>
struct BackwardParts {
  using A = Sum<T>;
  static constexpr int kItems = Vector<T>::kItems;

  const BackwardCall& call;

  // Of image n, what forward has saved: inputs of the hidden activation, and of the gates.
  SENET_DEVICE const A* squeezed(std::int64_t n) const { return static_cast<const A*>(call.p.saved) + n * call.saved_stride; }
  SENET_DEVICE const A* hidden_inputs(std::int64_t n) const { return squeezed(n) + call.image.K; }
  SENET_DEVICE const A* gate_inputs(std::int64_t n) const { return squeezed(n + 1) - call.image.K; }

  // gates[c] of the tile; a barrier has to follow.
  SENET_DEVICE void compute_gates(int n, const Tile& tile, A* gates) const {
    const A* z = gate_inputs(n) + tile.channel;
    for (int c = threadIdx.x; c < tile.channels; c += blockDim.x) {
      gates[c] = activate<A>(call.p.gate, z[c]) + A(call.p.epilogue.add_one);
    }
  }

  SENET_DEVICE A grad_v(A v, A grad_y) const {
    if constexpr (kGeneral) {
      if (!call.closes) return activate_grad<A>(call.p.epilogue.activation, v, grad_y);
    }
    return v <= A(call.lo) || v >= A(call.hi) ? A(0) : grad_y;
  }

  // Terms of the sum of grad_v * x over a tile. grad_y: the tile, in global or, with kKeep, in shared memory. Where there is an
  // activation, grad_v, rounded to its type, is written to out_v, and with kKeep also over grad_y; gates are used then. What is
  // in shared memory is near: it is read where it is used, and takes no registers beside four loads of the others.
  template <bool kKeep>
  struct Products {
    static constexpr int kAhead = (kGeneral && !kKeep) || sizeof(T) == 8 ? 2 : 4;  // of each tensor; as registers allow
    struct Near {};
    template <int n>
    struct Loaded {
      std::conditional_t<kKeep, Near, Held<T, n>> y;
      Held<T, n> x, residual;
    };
    using Y = std::conditional_t<kKeep, T, const T>;

    const BackwardParts& b;
    const T *x, *residual;
    Y* grad_y;
    T* out_v;
    const A* gates;

    template <int n>
    SENET_DEVICE Loaded<n> load(std::int64_t at) const {
      Loaded<n> loaded;
      loaded.x = hold_items<n, true>(x + at);
      if constexpr (!kKeep) loaded.y = hold_items<n, false>(grad_y + at);
      loaded.residual = {};
      if (residual) loaded.residual = hold_items<n, true>(residual + at);
      return loaded;
    }
    template <int n>
    SENET_DEVICE static void landed(Loaded<n>& loaded) {
      cuda::landed(loaded.x), cuda::landed(loaded.residual);
      if constexpr (!kKeep) cuda::landed(loaded.y);
    }
    template <int n>
    SENET_DEVICE Held<T, n> items(const Loaded<n>& loaded, std::int64_t at) const {
      if constexpr (kKeep) {
        return hold_items<n, false>(static_cast<const T*>(grad_y + at));
      } else {
        return loaded.y;
      }
    }
    template <int n>
    SENET_DEVICE void terms(const Loaded<n>& loaded, std::int64_t at, const int (&c)[n], A (&out)[n]) const {
      const Held<T, n> y = items<n>(loaded, at);
      if (!b.call.activated) {
#pragma unroll
        for (int j = 0; j < n; ++j) out[j] = A(widen(loaded.x[j])) * A(widen(y[j]));
        return;
      }
      Vector<T, n> stored;
#pragma unroll
      for (int j = 0; j < n; ++j) {
        const A u = widen(loaded.x[j]);
        A v = b.call.p.from_y ? A(0) : u * gates[c[j]];
        if (residual) v += A(widen(loaded.residual[j]));  // from y: this is y
        const A grad = b.grad_v(v, A(widen(y[j])));
        narrow(grad, stored.items[j]);
        out[j] = u * grad;
      }
      store_items(out_v + at, stored);
      if constexpr (kKeep) store_items(grad_y + at, stored);
    }
  };

  // sums[c] of them
  template <bool kKeep, class Y, class Ready = AlwaysReady>
  SENET_DEVICE void sum(int n, const Tile& tile, Y* grad_y, const A* gates, A* sums, A* scratch,
                        const Ready& ready = {}) const {
    const BackwardParams& p = call.p;
    // Never null, though not always written: else nvcc does not see that it is global memory.
    const void* written = call.activated ? p.grad_residual : p.grad_y;
    T* out_v = const_cast<T*>(static_cast<const T*>(written)) + n * call.image_stride + tile.offset;
    Products<kKeep> terms{*this, static_cast<const T*>(p.x) + n * p.x_batch_stride + tile.offset, nullptr, grad_y, out_v,
                          gates};
    int before = misaligned(terms.x);
    if (misaligned(grad_y) != before) before = -1;
    if (call.activated) {
      if (misaligned(out_v) != before) before = -1;
      if (p.epilogue.residual) {
        terms.residual = static_cast<const T*>(p.epilogue.residual) + n * p.epilogue.residual_batch_stride + tile.offset;
        if (misaligned(terms.residual) != before) before = -1;
      }
    }
    sum_tile<kItems, true>(call.image, tile, before, sums, scratch, terms, ready);
  }

  // grad_x = grad_v * gate + shift, what every element of a channel gets through the squeeze
  template <bool kLast>
  struct Written {
    static constexpr int kAhead = 4;
    template <int n>
    using Loaded = Held<T, n>;

    const BackwardParts& b;
    const Tile& tile;
    const A *gates, *shifts;  // from the tile's first channel on
    const T* grad_v;
    T* grad_x;

    template <int n>
    SENET_DEVICE Held<T, n> load(std::int64_t at) const {
      return hold_items<n, kLast>(grad_v + at);
    }
    template <int n>
    SENET_DEVICE void store(const Held<T, n>& loaded, std::int64_t at, int e) const {
      int c[n];
      channels_of(e, tile.columns, b.call.image.by_columns, c);
      Vector<T, n> out;
#pragma unroll
      for (int j = 0; j < n; ++j) narrow(A(widen(loaded[j])) * gates[c[j]] + shifts[c[j]], out.items[j]);
      store_items(grad_x + at, out);
    }
  };

  // grad_v: the tile, in shared or (kLast) in global memory, where nobody reads it again
  template <bool kLast>
  SENET_DEVICE void write(int n, const Tile& tile, const A* gates, const A* shifts, const T* grad_v) const {
    T* grad_x = static_cast<T*>(call.p.grad_x) + n * call.image_stride + tile.offset;
    const int before = misaligned(grad_v);
    for_tile<kItems>(tile, call.image.row, misaligned(grad_x) == before ? before : -1,
                     Written<kLast>{*this, tile, gates, shifts, grad_v, grad_x});
  }

  // channel_conv: what channel k gets from `grads`, the gradients of all gates' inputs.
  SENET_DEVICE A through_taps(int k, const A* grads) const {
    const int K = call.image.K, R = call.image.R, last = k + R / 2;  // the channel whose first tap was on this one
    const W* fc1 = static_cast<const W*>(call.p.fc1_weight);
    A sum = 0;
    for (int t = last < K ? 0 : last - K + 1; t < R && t <= last; ++t) sum += A(widen(fc1[t])) * grads[last - t];
    return sum;
  }
};

}  // namespace senet::cuda
