// Backward in one launch: the first phase reads grad_y and x once and sums the gradient of every gate, the second writes
// grad_x, and the last sums the gradients of the weights over all images, in their order. No floating-point atomics.
//
// With v = x * s + residual, y = activation(v) and grad_v the gradient of v: everything that gate and layers pass back is
// linear in the sums of grad_v * x, so tiles pass on shares of it, as in forward.
#pragma once
#include "se/cuda/tickets.cuh"
#include "se/cuda/tile.cuh"

namespace senet::cuda {

struct BackwardLaunch {
  BackwardParams p;
  Image image;
  Tickets tickets;
  double elements;  // that a channel is the mean of
  std::int64_t saved_stride, image_stride;
  bool activated;
  // The gradient of v is 0 up to lo and from hi on, of which each may be NaN, for nowhere; where that is not possible it is a
  // call.
  bool closes;
  double lo, hi;
  // scratch, in the type of sums
  void* grad_gate;       // [B, K], of the gate's input
  void* partial_gate;    // [B, parts, K], where more than one tile has the same channels
  void* hidden;          // [B, R], two_fc only, as all below
  void* grad_hidden;     // [B, R], of the activation's input
  void* partial_hidden;  // [B, tiles, R]
};

// Gradients of a matrix of weights: columns go to the threads of a block, as do groups of kWeightRows rows.
constexpr int kWeightRows = 4;
struct WeightTiles {
  int across, rows, row_tiles, column_tiles;  // columns and rows of a tile

  SENET_HOST_DEVICE WeightTiles(int M, int N, int threads)
      : across(N < threads ? N : threads),
        rows(threads / across * kWeightRows),
        row_tiles((M + rows - 1) / rows),
        column_tiles((N + across - 1) / across) {}
  SENET_HOST_DEVICE int count() const { return row_tiles * column_tiles; }
};

inline bool is_general(const BackwardParams& p) {
  const ActivationKind post = p.epilogue.activation.kind;
  return post != ActivationKind::identity && post != ActivationKind::relu && post != ActivationKind::relu6;
}

inline BackwardLaunch launch_of(const BackwardParams& p, const Plan& plan, unsigned* counters, Scratch& scratch, int threads) {
  Shape shape = p.shape;
  if (shape.O * shape.I == 0) shape.O = 0, shape.I = 1;
  const auto [B, O, K, I, R] = shape;
  BackwardLaunch l{p, {shape, plan.tiles, plan.lanes}, {counters, static_cast<int>(B), plan.lag, static_cast<unsigned>(plan.tiles.count())}};
  const int k = static_cast<int>(K), r = static_cast<int>(R);
  if (p.excitation == Excitation::channel_conv) {
    if (p.grad_fc1_weight || p.grad_fc1_bias) l.tickets.last = r + 1;  // the last for the bias
  } else {
    const bool two_fc = p.excitation == Excitation::two_fc;
    if (p.grad_fc1_weight || p.grad_fc1_bias) l.tickets.last = WeightTiles(two_fc ? r : k, k, threads).count();
    if (two_fc && (p.grad_fc2_weight || p.grad_fc2_bias)) l.tickets.last += WeightTiles(k, r, threads).count();
  }
  l.elements = static_cast<double>(O * I);
  l.saved_stride = p.saved_width();
  l.image_stride = O * K * I;
  l.activated = !p.epilogue.activation.is_identity();
  l.closes = !is_general(p);
  l.lo = p.epilogue.activation.is_identity() ? kNowhere : 0;
  l.hi = p.epilogue.activation.kind == ActivationKind::relu6 ? 6 : kNowhere;
  l.grad_gate = scratch.take(B * K);
  if (plan.tiles.parts() > 1) l.partial_gate = scratch.take(B * plan.tiles.parts() * K);
  if (p.excitation == Excitation::two_fc) {
    l.hidden = scratch.take(B * R);
    l.grad_hidden = scratch.take(B * R);
    l.partial_hidden = scratch.take(B * plan.tiles.count() * R);
  }
  return l;
}

template <class T, class W, bool kGeneral>
struct Backward {
  using A = Sum<T>;
  static constexpr int kItems = Vector<T>::kItems;

  template <int kBlock>
  struct Shared {
    TicketWords words;
    A gates[kMaxChannels];
    A channels[kMaxChannels];  // gradients of the gates' inputs, or what every element of a channel gets through the squeeze
    A scratch[kBlock * kItems];
    double warps[kBlock / 32];
  };

  const BackwardLaunch& l;
  A *gates, *channels, *scratch;
  double* warps;
  TicketWords& words;

  template <int kBlock>
  SENET_DEVICE static void run(const BackwardLaunch& launch, Shared<kBlock>& shared) {
    const Backward backward{launch, shared.gates, shared.channels, shared.scratch, shared.warps, shared.words};
    for_tickets(launch.tickets, shared.words, [&](const Job& job) { backward.work(job); });
  }

 private:
  SENET_DEVICE void work(const Job& job) const {
    if (job.phase == Phase::last) {
      wait_for_all_images(l.tickets);
      return weights(job.tile);
    }
    const Tile tile = tile_of(job.tile, l.image);
    if (job.phase == Phase::first) {
      reduce(job, tile);
      if (arrive(l.tickets, words, job.image)) {
        join(job.image);
        publish(l.tickets, job.image);
      }
    } else if (l.p.grad_x) {
      wait_for_image(l.tickets, job.image);
      write(job.image, tile);
    }
  }

  SENET_DEVICE const A* saved(int n) const { return static_cast<const A*>(l.p.saved) + n * l.saved_stride; }
  SENET_DEVICE A* row(void* matrix, std::int64_t n, int width) const { return static_cast<A*>(matrix) + n * width; }

  SENET_DEVICE void compute_gates(int n, const Tile& tile) const {
    const A* z = saved(n + 1) - l.image.K + tile.channel;
    for (int c = threadIdx.x; c < tile.channels; c += blockDim.x) {
      gates[c] = activate<A>(l.p.gate, z[c]) + A(l.p.epilogue.add_one);
    }
    __syncthreads();
  }

  SENET_DEVICE A grad_v(A v, A grad_y) const {
    if constexpr (kGeneral) {
      if (!l.closes) return activate_grad<A>(l.p.epilogue.activation, v, grad_y);
    }
    return v <= A(l.lo) || v >= A(l.hi) ? A(0) : grad_y;
  }

  SENET_DEVICE void reduce(const Job& job, const Tile& tile) const {
    const Image& image = l.image;
    const int K = image.K, R = image.R;
    const T* x = static_cast<const T*>(l.p.x) + job.image * l.p.x_batch_stride + tile.offset;
    const T* grad_y = static_cast<const T*>(l.p.grad_y) + job.image * l.image_stride + tile.offset;
    const T* residual = static_cast<const T*>(l.p.epilogue.residual);
    T* out_v = nullptr;
    int before = misaligned(x);
    if (misaligned(grad_y) != before) before = -1;
    if (l.activated) {
      compute_gates(job.image, tile);
      out_v = static_cast<T*>(l.p.grad_residual) + job.image * l.image_stride + tile.offset;
      if (misaligned(out_v) != before) before = -1;
      if (residual) {
        residual += job.image * l.p.epilogue.residual_batch_stride + tile.offset;
        if (misaligned(residual) != before) before = -1;
      }
    }
    sum_tile<kItems>(image, tile, before, channels, scratch, [&](std::int64_t at, int c, int step, auto& out) {
      constexpr int n = sizeof(out) / sizeof(A);
      const Vector<T, n> vx = load_items<n, true>(x + at), vy = load_items<n, false>(grad_y + at);
      if (!l.activated) {
#pragma unroll
        for (int j = 0; j < n; ++j) out[j] = A(widen(vx.items[j])) * A(widen(vy.items[j]));
        return;
      }
      Vector<T, n> r, stored;
      if (residual) r = load_items<n, true>(residual + at);
#pragma unroll
      for (int j = 0; j < n; ++j) {
        const A u = widen(vx.items[j]);
        A v = u * gates[c + j * step];
        if (residual) v += A(widen(r.items[j]));
        const A grad = grad_v(v, A(widen(vy.items[j])));
        narrow(grad, stored.items[j]);
        out[j] = u * grad;
      }
      store_items(out_v + at, stored);
    });
    __syncthreads();
    const A* z = saved(job.image + 1) - K + tile.channel;
    A* grads = image.parts > 1 ? row(l.partial_gate, std::int64_t{job.image} * image.parts + tile.part, K)
                               : row(l.grad_gate, job.image, K);
    for (int c = threadIdx.x; c < tile.channels; c += blockDim.x) {
      channels[c] = activate_grad<A>(l.p.gate, z[c], channels[c]);
      grads[tile.channel + c] = channels[c];
    }
    if (l.p.excitation != Excitation::two_fc) return;
    __syncthreads();
    const W* fc2 = static_cast<const W*>(l.p.fc2_weight) + std::int64_t{tile.channel} * R;
    A* partial = row(l.partial_hidden, std::int64_t{job.image} * image.count + job.tile, R);
    sum_wide(
        tile.channels, R, gates, scratch, [&](int c, int r) { return A(widen(fc2[std::int64_t{c} * R + r])) * channels[c]; },
        [&](int r, A sum) { partial[r] = sum; });
  }

  SENET_DEVICE void join(int n) const {
    const int K = l.image.K, R = l.image.R;
    if (l.image.parts > 1) {
      const A* partial = row(l.partial_gate, std::int64_t{n} * l.image.parts, K);
      A* grads = row(l.grad_gate, n, K);
      sum_wide(
          l.image.parts, K, channels, scratch, [&](int part, int k) { return partial[std::int64_t{part} * K + k]; },
          [&](int k, A sum) { grads[k] = sum; });
    }
    if (l.p.excitation != Excitation::two_fc) return;
    const A *partial = row(l.partial_hidden, std::int64_t{n} * l.image.count, R), *z = saved(n) + K;
    A *hidden = row(l.hidden, n, R), *grads = row(l.grad_hidden, n, R);
    sum_wide(
        l.image.count, R, channels, scratch, [&](int tile, int r) { return partial[std::int64_t{tile} * R + r]; },
        [&](int r, A sum) {
          grads[r] = activate_grad<A>(l.p.activation, z[r], sum);
          hidden[r] = activate<A>(l.p.activation, z[r]);
        });
  }

  struct Written {
    static constexpr int kAhead = 4;
    template <int n>
    using Loaded = Vector<T, n>;

    const Backward& b;
    const Tile& tile;
    const T* grad_v;
    T* grad_x;

    template <int n>
    SENET_DEVICE Vector<T, n> load(std::int64_t at) const {
      return load_items<n, true>(grad_v + at);
    }
    template <int n>
    SENET_DEVICE void store(const Vector<T, n>& loaded, std::int64_t at, int e) const {
      int c[n];
      channels_of(e, tile.columns, b.l.image.by_columns, c);
      Vector<T, n> out;
#pragma unroll
      for (int j = 0; j < n; ++j) narrow(A(widen(loaded.items[j])) * b.gates[c[j]] + b.channels[c[j]], out.items[j]);
      store_items(grad_x + at, out);
    }
  };

  SENET_DEVICE void write(int n, const Tile& tile) const {
    const int K = l.image.K, R = l.image.R;
    compute_gates(n, tile);
    const W* fc1 = static_cast<const W*>(l.p.fc1_weight);
    const A* grads = row(l.grad_gate, n, K);
    if (l.p.excitation == Excitation::channel_conv) {
      for (int c = threadIdx.x; c < tile.channels; c += blockDim.x) {
        const int last = tile.channel + c + R / 2;  // the channel whose first tap was on this one
        A sum = 0;
        for (int t = last < K ? 0 : last - K + 1; t < R && t <= last; ++t) sum += A(widen(fc1[t])) * grads[last - t];
        channels[c] = sum / A(l.elements);
      }
      __syncthreads();
    } else {
      const bool two_fc = l.p.excitation == Excitation::two_fc;
      const A* in = two_fc ? row(l.grad_hidden, n, R) : grads;
      sum_wide(
          two_fc ? R : K, tile.channels, channels, scratch,
          [&](int m, int c) { return A(widen(fc1[std::int64_t{m} * K + tile.channel + c])) * in[m]; },
          [&](int c, A sum) { channels[c] = sum / A(l.elements); });
    }
    const T* grad_v = static_cast<const T*>(l.activated ? l.p.grad_residual : l.p.grad_y) + n * l.image_stride + tile.offset;
    T* grad_x = static_cast<T*>(l.p.grad_x) + n * l.image_stride + tile.offset;
    const int before = misaligned(grad_v);
    for_tile<kItems>(tile, l.image.row, misaligned(grad_x) == before ? before : -1, Written{*this, tile, grad_v, grad_x});
  }

  // ---- weights: each number by one thread, image by image ----

  SENET_DEVICE void weights(int job) const {
    const int K = l.image.K, R = l.image.R;
    const A* grad_gate = row(l.grad_gate, 0, K);
    switch (l.p.excitation) {
      case Excitation::two_fc: {
        const WeightTiles first(R, K, blockDim.x), second(K, R, blockDim.x);
        if (l.p.grad_fc1_weight || l.p.grad_fc1_bias) {
          if (job < first.count()) {
            return outer(first, job, row(l.grad_hidden, 0, R), R, saved(0), l.saved_stride, K, l.p.grad_fc1_weight,
                         l.p.grad_fc1_bias);
          }
          job -= first.count();
        }
        return outer(second, job, grad_gate, K, row(l.hidden, 0, R), R, R, l.p.grad_fc2_weight, l.p.grad_fc2_bias);
      }
      case Excitation::one_fc:
        return outer(WeightTiles(K, K, blockDim.x), job, grad_gate, K, saved(0), l.saved_stride, K, l.p.grad_fc1_weight,
                     l.p.grad_fc1_bias);
      case Excitation::channel_conv:
        return tap(job);
    }
  }

  // A tile of weight[m, j] = sum over images of left[n, m] * right[n, j], and bias[m] = sum of left[n, m].
  SENET_DEVICE void outer(const WeightTiles& tiles, int job, const A* left, int M, const A* right, std::int64_t right_stride,
                          int N, void* weight_, void* bias_) const {
    W *weight = static_cast<W*>(weight_), *bias = static_cast<W*>(bias_);
    const int thread = threadIdx.x, row = thread / tiles.across * kWeightRows;
    const int column = job % tiles.column_tiles * tiles.across + thread % tiles.across;
    const int first = job / tiles.column_tiles * tiles.rows + row;
    if (column >= N || row >= tiles.rows) return;
    A sums[kWeightRows] = {}, biases[kWeightRows] = {};
#pragma unroll 4
    for (int n = 0; n < l.tickets.images; ++n) {
      const A factor = right[n * right_stride + column];
#pragma unroll
      for (int i = 0; i < kWeightRows; ++i) {
        const A v = left[std::int64_t{n} * M + (first + i < M ? first + i : 0)];
        sums[i] += v * factor;
        biases[i] += v;
      }
    }
    for (int i = 0; i < kWeightRows && first + i < M; ++i) {
      if (weight) weight[std::int64_t{first + i} * N + column] = narrowed<W>(sums[i]);
      if (bias && column == 0) bias[first + i] = narrowed<W>(biases[i]);
    }
  }

  // The gradient of tap t, or behind the last tap the bias's: a sum over images and channels, which may cancel, by the
  // whole block.
  SENET_DEVICE void tap(int t) const {
    const int K = l.image.K, R = l.image.R, shift = t < R ? t - R / 2 : 0;
    void* to = t < R ? l.p.grad_fc1_weight : l.p.grad_fc1_bias;
    if (to == nullptr) return;
    const int from = shift < 0 ? -shift : 0, end = shift > 0 ? K - shift : K;
    double sum = 0;
    for (int n = 0; n < l.tickets.images; ++n) {
      const A *grads = row(l.grad_gate, n, K), *squeezed = saved(n) + shift;
      for (int k = from + threadIdx.x; k < end; k += blockDim.x) sum += t < R ? double(grads[k]) * squeezed[k] : grads[k];
    }
    sum = sum_lanes(sum, 32);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int w = 1; w < static_cast<int>(blockDim.x) / 32; ++w) sum += warps[w];
    static_cast<W*>(to)[t < R ? t : 0] = narrowed<W>(A(sum));
  }
};

}  // namespace senet::cuda
