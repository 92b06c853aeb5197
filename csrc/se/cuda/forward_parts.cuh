// What is the same in the ticket and in the cluster kernel's forward: squeeze, gate and scale of a tile.
#pragma once
#include <limits>

#include "se/cuda/sums.cuh"

namespace senet::cuda {

// Identity, relu and relu6 as limits of v. Other activations are calls for each element. These, and the prologue, are in
// kernels of their own, which need more registers.
struct Clamp {
  bool possible;
  float lo, hi;
};
inline Clamp clamp_of(const Activation& activation) {
  const float infinity = std::numeric_limits<float>::infinity();
  const bool identity = activation.is_identity(), relu6 = activation.kind == ActivationKind::relu6;
  return {identity || relu6 || activation.kind == ActivationKind::relu, identity ? -infinity : 0.0f, relu6 ? 6.0f : infinity};
}

struct ForwardCall {
  ForwardParams p;
  Image image;
  double elements;  // that a channel is the mean of
  std::int64_t saved_stride;
  bool prologued;
  Clamp pre, post;
};

inline ForwardCall call_of(const ForwardParams& p, const Tiles& tiles, int lanes, SumRoom room) {
  Shape shape = p.shape;
  if (shape.O * shape.I == 0) shape.O = 0, shape.I = 1;  // a mean over nothing, which is NaN
  return {p,
          {shape, tiles, lanes, room},
          static_cast<double>(shape.O * shape.I),
          p.saved_width(),
          !p.prologue.is_identity(),
          clamp_of(p.prologue.activation),
          clamp_of(p.epilogue.activation)};
}

inline bool is_general(const ForwardParams& p) {
  return !p.prologue.is_identity() || !clamp_of(p.epilogue.activation).possible;
}

template <class T, class W, bool kGeneral>
struct ForwardParts {
  using A = Sum<T>;
  static constexpr int kItems = Vector<T>::kItems;

  const ForwardCall& call;

  SENET_DEVICE static A limited(const Clamp& clamp, const Activation& activation, A v) {
    if constexpr (kGeneral) {
      if (!clamp.possible) return activate<A>(activation, v);
    }
    return v < A(clamp.lo) ? A(clamp.lo) : v > A(clamp.hi) ? A(clamp.hi) : v;  // a NaN passes
  }
  // u of a channel of x: behind the prologue, rounded to the type of x
  SENET_DEVICE A prologue(A v, std::int64_t k) const {
    const Prologue& pre = call.p.prologue;
    if (pre.scale) v *= static_cast<const A*>(pre.scale)[k];
    if (pre.shift) v += static_cast<const A*>(pre.shift)[k];
    return widen(narrowed<T>(limited(call.pre, pre.activation, v)));
  }

  // Terms of the sum of u over a tile, whose first element is *x.
  struct Squeezed {
    static constexpr int kAhead = 4;
    template <int n>
    using Loaded = Held<T, n>;

    const ForwardParts& f;
    const Tile& tile;
    const T* x;

    template <int n>
    SENET_DEVICE Held<T, n> load(std::int64_t at) const {
      return hold_items<n, false>(x + at);
    }
    template <int n>
    SENET_DEVICE static void landed(Held<T, n>& loaded) {
      cuda::landed(loaded);
    }
    template <int n>
    SENET_DEVICE void terms(const Held<T, n>& loaded, std::int64_t, const int (&c)[n], A (&out)[n]) const {
#pragma unroll
      for (int j = 0; j < n; ++j) {
        out[j] = widen(loaded[j]);
        if (kGeneral && f.call.prologued) out[j] = f.prologue(out[j], tile.channel + c[j]);
      }
    }
  };
  template <class Ready = AlwaysReady>
  SENET_DEVICE void sum(const T* x, const Tile& tile, A* sums, A* scratch, const Ready& ready = {}) const {
    constexpr bool kRuns = std::is_same_v<Ready, AlwaysReady>;  // what is in shared memory is near
    sum_tile<kItems, kRuns>(call.image, tile, misaligned(x), sums, scratch, Squeezed{*this, tile, x}, ready);
  }

  // out(c, i, z) without the bias, for c < channels from channel `first` on: the inputs of their gates. in: the hidden
  // layer behind its activation, or all of the squeezed.
  template <int kImages, class Out>
  SENET_DEVICE void gate_inputs(int first, int channels, const Vectors<A>& in, const Out& out) const {
    const ForwardParams& p = call.p;
    const int K = call.image.K, R = call.image.R;
    const W *fc1 = static_cast<const W*>(p.fc1_weight), *fc2 = static_cast<const W*>(p.fc2_weight);
    if (p.excitation == Excitation::channel_conv) {
      for (int c = threadIdx.x; c < channels; c += blockDim.x) {
        const int from = first + c - R / 2;
        for (int i = 0; i < in.count; ++i) {
          A z = 0;
          for (int t = from < 0 ? -from : 0; t < R && from + t < K; ++t)
            z += A(widen(fc1[t])) * in.in[i * in.stride + from + t];
          out(c, i, z);
        }
      }
    } else {
      const bool two_fc = p.excitation == Excitation::two_fc;
      const int M = two_fc ? R : K;
      multiply_rows<kImages>((two_fc ? fc2 : fc1) + std::int64_t{first} * M, M, channels, M, in, out);
    }
  }

  // The gate of channel k, or 1 + gate, from its input without the bias, which is saved where `save` is set.
  SENET_DEVICE A gate(int n, int k, A z, bool save) const {
    const ForwardParams& p = call.p;
    const W* bias = static_cast<const W*>(p.excitation == Excitation::two_fc ? p.fc2_bias : p.fc1_bias);
    if (bias) z += A(widen(bias[p.excitation == Excitation::channel_conv ? 0 : k]));
    if (p.saved && save) static_cast<A*>(p.saved)[(n + 1) * call.saved_stride - call.image.K + k] = z;
    return activate<A>(p.gate, z) + A(p.epilogue.add_one);
  }

  // The hidden channel r behind its activation, from its sum.
  SENET_DEVICE A hidden(int n, int r, A sum, bool save) const {
    const ForwardParams& p = call.p;
    if (p.fc1_bias) sum += A(widen(static_cast<const W*>(p.fc1_bias)[r]));
    if (p.saved && save) static_cast<A*>(p.saved)[n * call.saved_stride + call.image.K + r] = sum;
    return activate<A>(p.activation, sum);
  }

  // y = activation(u * gate + residual). kLast: x is in global memory, and read for the last time. In shared memory it is near:
  // it is read where it is used, and takes no registers beside four loads of the residual.
  template <bool kLast>
  struct Scaled {
    static constexpr int kAhead = 4;
    struct Near {};
    template <int n>
    struct Loaded {
      std::conditional_t<kLast, Held<T, n>, Near> x;
      Held<T, n> residual;
    };

    const ForwardParts& f;
    const Tile& tile;
    const A* gates;  // from the tile's first channel on
    const T *x, *residual;
    T* y;

    template <int n>
    SENET_DEVICE Loaded<n> load(std::int64_t at) const {
      Loaded<n> loaded;
      if constexpr (kLast) loaded.x = hold_items<n, true>(x + at);
      loaded.residual = {};
      if (residual) loaded.residual = hold_items<n, true>(residual + at);
      return loaded;
    }

    template <int n>
    SENET_DEVICE Held<T, n> items(const Loaded<n>& loaded, std::int64_t at) const {
      if constexpr (kLast) {
        return loaded.x;
      } else {
        return hold_items<n, false>(x + at);
      }
    }

    template <int n>
    SENET_DEVICE void store(const Loaded<n>& loaded, std::int64_t at, int e) const {
      int c[n];
      channels_of(e, tile.columns, f.call.image.by_columns, c);
      const Held<T, n> held = items<n>(loaded, at);
      Vector<T, n> out;
#pragma unroll
      for (int j = 0; j < n; ++j) {
        A v = widen(held[j]);
        if (kGeneral && f.call.prologued) v = f.prologue(v, tile.channel + c[j]);
        v *= gates[c[j]];
        if (residual) v += A(widen(loaded.residual[j]));
        narrow(limited(f.call.post, f.call.p.epilogue.activation, v), out.items[j]);
      }
      store_items(y + at, out);
    }
  };

  // x: the tile, in shared or (kLast) in global memory
  template <bool kLast>
  SENET_DEVICE void scale(int n, const Tile& tile, const A* gates, const T* x) const {
    const ForwardParams& p = call.p;
    const T* residual = static_cast<const T*>(p.epilogue.residual);
    if (residual) residual += n * p.epilogue.residual_batch_stride + tile.offset;
    T* y = static_cast<T*>(p.y) + n * p.y_batch_stride + tile.offset;
    const int before = misaligned(x);
    const bool together = misaligned(y) == before && (!residual || misaligned(residual) == before);
    for_tile<kItems>(tile, call.image.row, together ? before : -1, Scaled<kLast>{*this, tile, gates, x, residual, y});
  }
};

}  // namespace senet::cuda
