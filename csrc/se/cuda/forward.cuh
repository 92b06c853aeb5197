// Forward: squeeze, excite and scale in one launch. fc1 is linear, so every tile turns its share of the squeezed channels into
// a share of the hidden layer; the last tile of an image adds these shares up in the order of tiles, and each tile computes the
// gates of its own channels. Every sum has a fixed order: the bits depend on shape, types, alignment and the size of tiles.
#pragma once
#include <limits>

#include "se/cuda/tickets.cuh"
#include "se/cuda/tile.cuh"

namespace senet::cuda {

// Identity, relu and relu6 as limits of v. Other activations are calls for each element. These, and the prologue, are in
// kernels of their own, which need more registers.
struct Clamp {
  bool possible;
  double lo, hi;
};
inline Clamp clamp_of(const Activation& activation) {
  const double infinity = std::numeric_limits<double>::infinity();
  const bool identity = activation.is_identity(), relu6 = activation.kind == ActivationKind::relu6;
  return {identity || relu6 || activation.kind == ActivationKind::relu, identity ? -infinity : 0, relu6 ? 6 : infinity};
}

struct ForwardLaunch {
  ForwardParams p;
  Image image;
  Tickets tickets;
  double elements;  // that a channel is the mean of
  std::int64_t saved_stride;
  bool prologued;
  Clamp pre, post;
  // scratch, in the type of sums
  void* partial_hidden;    // [B, tiles, R]
  void* hidden;            // [B, R], behind the activation
  void* partial_squeezed;  // [B, parts, K], where more than one tile has the same channels and squeezed is wanted
  void* squeezed;          // row by row of squeezed_stride; null where nobody wants it
  std::int64_t squeezed_stride;
};

inline ForwardLaunch launch_of(const ForwardParams& p, const Plan& plan, unsigned* counters, Scratch& scratch) {
  Shape shape = p.shape;
  if (shape.O * shape.I == 0) shape.O = 0, shape.I = 1;  // a mean over nothing, which is NaN
  const auto [B, O, K, I, R] = shape;
  ForwardLaunch l{p, {shape, plan}, {counters, static_cast<int>(B), plan.lag, static_cast<unsigned>(plan.tiles.count())}};
  l.elements = static_cast<double>(O * I);
  l.saved_stride = p.saved_width();
  l.prologued = !p.prologue.is_identity();
  l.pre = clamp_of(p.prologue.activation);
  l.post = clamp_of(p.epilogue.activation);
  const bool two_fc = p.excitation == Excitation::two_fc;
  if (two_fc) {
    l.partial_hidden = scratch.take(B * plan.tiles.count() * R);
    l.hidden = scratch.take(B * R);
  }
  const bool wanted = p.saved || !two_fc;
  if (wanted && plan.tiles.parts() > 1) l.partial_squeezed = scratch.take(B * plan.tiles.parts() * K);
  l.squeezed = p.saved;
  l.squeezed_stride = p.saved ? p.saved_width() : K;
  if (wanted && !p.saved) l.squeezed = scratch.take(B * K);
  return l;
}

inline bool is_general(const ForwardParams& p) {
  return !p.prologue.is_identity() || !clamp_of(p.epilogue.activation).possible;
}

template <class T, class W, bool kGeneral>
struct Forward {
  using A = Sum<T>;
  static constexpr int kItems = Vector<T>::kItems;

  template <int kBlock>
  struct Shared {
    TicketWords words;
    A channels[kMaxChannels];  // squeezed, or gates
    A scratch[kBlock * kItems];
  };

  const ForwardLaunch& l;
  A *channels, *scratch;
  TicketWords& words;

  template <int kBlock>
  SENET_DEVICE static void run(const ForwardLaunch& launch, Shared<kBlock>& shared) {
    const Forward forward{launch, shared.channels, shared.scratch, shared.words};
    for_tickets(launch.tickets, shared.words, [&](const Job& job) { forward.work(job); });
  }

 private:
  SENET_DEVICE void work(const Job& job) const {
    const Tile tile = tile_of(job.tile, l.image);
    if (job.phase == Phase::first) {
      squeeze(job, tile);
      if (arrive(l.tickets, words, job.image)) {
        join(job.image);
        publish(l.tickets, job.image);
      }
    } else {
      wait_for_image(l.tickets, job.image);
      excite(job.image, tile);
      __syncthreads();
      scale(job.image, tile);
    }
  }

  SENET_DEVICE static A limited(const Clamp& clamp, const Activation& activation, A v) {
    if constexpr (kGeneral) {
      if (!clamp.possible) return activate<A>(activation, v);
    }
    return v < A(clamp.lo) ? A(clamp.lo) : v > A(clamp.hi) ? A(clamp.hi) : v;  // a NaN passes
  }
  // u of a channel of x: behind the prologue, rounded to the type of x
  SENET_DEVICE A prologue(A v, std::int64_t k) const {
    const Prologue& pre = l.p.prologue;
    if (pre.scale) v *= static_cast<const A*>(pre.scale)[k];
    if (pre.shift) v += static_cast<const A*>(pre.shift)[k];
    return widen(narrowed<T>(limited(l.pre, pre.activation, v)));
  }

  SENET_DEVICE void squeeze(const Job& job, const Tile& tile) const {
    const auto& image = l.image;
    const int K = image.K;
    const T* x = static_cast<const T*>(l.p.x) + job.image * l.p.x_batch_stride + tile.offset;
    const bool prologued = kGeneral && l.prologued;
    sum_tile<kItems>(image, tile, misaligned(x), channels, scratch, [&](std::int64_t at, int c, int step, auto& out) {
      constexpr int n = sizeof(out) / sizeof(A);
      const Vector<T, n> v = load_items<n, false>(x + at);
#pragma unroll
      for (int j = 0; j < n; ++j) {
        out[j] = widen(v.items[j]);
        if (kGeneral && prologued) out[j] = prologue(out[j], tile.channel + c + j * step);
      }
    });
    __syncthreads();
    A* squeezed = image.parts > 1
                      ? static_cast<A*>(l.partial_squeezed) + (std::int64_t{job.image} * image.parts + tile.part) * K
                      : static_cast<A*>(l.squeezed) + job.image * l.squeezed_stride;
    for (int c = threadIdx.x; c < tile.channels; c += blockDim.x) {
      channels[c] /= A(l.elements);
      if (l.squeezed) squeezed[tile.channel + c] = channels[c];
    }
    if (l.p.excitation != Excitation::two_fc) return;
    __syncthreads();
    A* partial = static_cast<A*>(l.partial_hidden) + (std::int64_t{job.image} * image.count + job.tile) * image.R;
    multiply_rows(static_cast<const W*>(l.p.fc1_weight) + tile.channel, K, image.R, tile.channels, channels,
                  [&](int r, A sum) { partial[r] = sum; });
  }

  SENET_DEVICE void join(int n) const {
    const int K = l.image.K, R = l.image.R;
    if (l.squeezed && l.image.parts > 1) {
      A* squeezed = static_cast<A*>(l.squeezed) + n * l.squeezed_stride;
      const A* partial = static_cast<const A*>(l.partial_squeezed) + std::int64_t{n} * l.image.parts * K;
      sum_wide(
          l.image.parts, K, channels, scratch, [&](int part, int k) { return partial[std::int64_t{part} * K + k]; },
          [&](int k, A sum) { squeezed[k] = sum; });
    }
    if (l.p.excitation != Excitation::two_fc) return;
    A* saved = l.p.saved ? static_cast<A*>(l.p.saved) + n * l.saved_stride + K : nullptr;
    A* hidden = static_cast<A*>(l.hidden) + std::int64_t{n} * R;
    const W* bias = static_cast<const W*>(l.p.fc1_bias);
    const A* partial = static_cast<const A*>(l.partial_hidden) + std::int64_t{n} * l.image.count * R;
    sum_wide(
        l.image.count, R, channels, scratch, [&](int tile, int r) { return partial[std::int64_t{tile} * R + r]; },
        [&](int r, A sum) {
          if (bias) sum += A(widen(bias[r]));
          if (saved) saved[r] = sum;
          hidden[r] = activate<A>(l.p.activation, sum);
        });
  }

  // channels = the gates of the tile
  SENET_DEVICE void excite(int n, const Tile& tile) const {
    const int K = l.image.K, R = l.image.R;
    const A* squeezed = static_cast<const A*>(l.squeezed) + n * l.squeezed_stride;
    const W *fc1 = static_cast<const W*>(l.p.fc1_weight), *fc2 = static_cast<const W*>(l.p.fc2_weight);
    const bool two_fc = l.p.excitation == Excitation::two_fc, conv = l.p.excitation == Excitation::channel_conv;
    if (conv) {
      for (int c = threadIdx.x; c < tile.channels; c += blockDim.x) {
        const int first = tile.channel + c - R / 2;
        A z = 0;
        for (int t = first < 0 ? -first : 0; t < R && first + t < K; ++t) z += A(widen(fc1[t])) * squeezed[first + t];
        channels[c] = z;
      }
    } else {
      const int M = two_fc ? R : K;
      multiply_rows((two_fc ? fc2 : fc1) + std::int64_t{tile.channel} * M, M, tile.channels, M,
                    two_fc ? static_cast<const A*>(l.hidden) + std::int64_t{n} * R : squeezed,
                    [&](int c, A z) { channels[c] = z; });
    }
    __syncthreads();
    A* saved = l.p.saved && tile.part == 0 ? static_cast<A*>(l.p.saved) + (n + 1) * l.saved_stride - K : nullptr;
    const W* bias = static_cast<const W*>(two_fc ? l.p.fc2_bias : l.p.fc1_bias);
    for (int c = threadIdx.x; c < tile.channels; c += blockDim.x) {
      const int k = tile.channel + c;
      A z = channels[c];
      if (bias) z += A(widen(bias[conv ? 0 : k]));
      if (saved) saved[k] = z;
      channels[c] = activate<A>(l.p.gate, z) + A(l.p.epilogue.add_one);
    }
  }

  struct Scaled {
    static constexpr int kAhead = 2;
    template <int n>
    struct Loaded {
      Vector<T, n> x, residual;
    };

    const Forward& f;
    const Tile& tile;
    const T *x, *residual;
    T* y;
    bool prologued;

    template <int n>
    SENET_DEVICE Loaded<n> load(std::int64_t at) const {
      Loaded<n> loaded;
      loaded.x = load_items<n, true>(x + at);
      if (residual) loaded.residual = load_items<n, true>(residual + at);
      return loaded;
    }

    template <int n>
    SENET_DEVICE void store(const Loaded<n>& loaded, std::int64_t at, int e) const {
      const ForwardLaunch& l = f.l;
      int c[n];
      channels_of(e, tile.columns, l.image.by_columns, c);
      Vector<T, n> out;
#pragma unroll
      for (int j = 0; j < n; ++j) {
        A v = widen(loaded.x.items[j]);
        if (kGeneral && prologued) v = f.prologue(v, tile.channel + c[j]);
        v *= f.channels[c[j]];
        if (residual) v += A(widen(loaded.residual.items[j]));
        narrow(limited(l.post, l.p.epilogue.activation, v), out.items[j]);
      }
      store_items(y + at, out);
    }
  };

  SENET_DEVICE void scale(int image, const Tile& tile) const {
    const T* x = static_cast<const T*>(l.p.x) + image * l.p.x_batch_stride + tile.offset;
    const T* residual = static_cast<const T*>(l.p.epilogue.residual);
    if (residual) residual += image * l.p.epilogue.residual_batch_stride + tile.offset;
    T* y = static_cast<T*>(l.p.y) + image * l.p.y_batch_stride + tile.offset;
    const int before = misaligned(x);
    const bool together = misaligned(y) == before && (!residual || misaligned(residual) == before);
    for_tile<kItems>(tile, l.image.row, together ? before : -1, Scaled{*this, tile, x, residual, y, kGeneral && l.prologued});
  }
};

}  // namespace senet::cuda
