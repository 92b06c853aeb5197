// Backward by clusters: grad_y stays in shared memory, where grad_v takes its place if there is an activation; x is read once,
// on the way. The gradients of the weights are summed behind it, in a launch of their own: see weights.cuh.
#pragma once
#include "se/cuda/cluster.cuh"
#include "se/cuda/weights.cuh"

namespace senet::cuda {

struct ClusterBackwardLaunch {
  BackwardCall call;
  ClusterCut cut;
  WeightSums sums;
};
inline ClusterBackwardLaunch launch_of(const BackwardParams& p, const ClusterPlan& plan, Scratch& scratch) {
  return {call_of(p, plan.slices, plan.lanes, plan.room), {p, plan, true}, weight_sums(p, scratch)};
}

template <class T, class W, bool kGeneral, int kImages>
struct ClusterBackward {
  using A = float;

  const BackwardCall& call;
  const WeightSums& to;
  const BackwardParts<T, W, kGeneral> parts;
  Member<T>& m;

  SENET_DEVICE static void run(const ClusterBackwardLaunch& launch, unsigned char* shared) {
    Member<T> member(launch.cut, launch.call.image, launch.call.p.grad_y, launch.call.image_stride, shared);
    const ClusterBackward backward{launch.call, launch.sums, {launch.call}, member};
    member.for_turns([&] { backward.turn(); });
  }

 private:
  SENET_DEVICE int first_channel() const { return m.tile.channel + m.begin; }

  SENET_DEVICE void turn() const {
    const bool two_fc = call.p.excitation == Excitation::two_fc;
    for (int i = 0; i < m.count; ++i) parts.compute_gates(m.first + i, m.tile, m.gates(i));
    __syncthreads();
    for (int i = 0; i < m.count; ++i) {
      const int n = m.first + i;
      parts.template sum<true>(n, m.tile, m.slice(i, n), m.gates(i), m.sums(i), m.scratch(), m.ready(i));
      __syncthreads();
    }
    m.join_parts();
    pass_gates();
    if (two_fc) {
      share_hidden();
    } else {
      m.share();
      m.collect_all();
    }
    pass_squeeze();
    for (int i = 0; i < m.count; ++i) {
      const int n = m.first + i;
      m.for_chunks(i, [&](const Tile& chunk, int at) {
        const int c = chunk.channel - m.tile.channel;
        if (call.p.grad_x) parts.template write<false>(n, chunk, m.gates(i) + c, m.shifts(i) + c, m.slice(i, n) + at);
        if (call.activated) before_copies();  // grad_v was written where a copy lands next
      });
    }
  }

  // own(i) = gradients of the gates' inputs
  SENET_DEVICE void pass_gates() const {
    A* grads = static_cast<A*>(to.grad_gate);
    for (int e = threadIdx.x; e < m.count * m.owned; e += blockDim.x) {
      const int i = e / m.owned, c = e % m.owned, n = m.first + i;
      const A grad = activate_grad<A>(call.p.gate, parts.gate_inputs(n)[first_channel() + c], m.own(i)[c]);
      m.own(i)[c] = grad;
      grads[std::int64_t{n} * call.image.K + first_channel() + c] = grad;
    }
    __syncthreads();
  }

  // Terms of sum_columns(): a row of weights times in of all images, whose sums lie side by side.
  struct Mixed {
    static constexpr int kAhead = 8;
    template <int n>
    using Loaded = W;

    const W* weight;
    std::int64_t stride;
    const Vectors<A>& in;

    SENET_DEVICE static int groups(int possible, int) { return possible; }
    SENET_DEVICE static void prepare(int, int) {}
    SENET_DEVICE static void landed(W&) {}
    template <int n>
    SENET_DEVICE W load(int row, int at) const {
      return weight[row * stride + at / kImages];
    }
    SENET_DEVICE void terms(W loaded, int row, int, A (&out)[kImages]) const {
#pragma unroll
      for (int i = 0; i < kImages; ++i) out[i] = A(widen(loaded)) * in.in[(i < in.count ? i : 0) * in.stride + row];
    }
  };

  // out(c, i, sum over row < rows of weight[row * stride + c] * in of image i [row]) for c < width. A weight is read once for
  // all images. The whole block calls it; it ends with a barrier.
  template <class Out>
  SENET_DEVICE void multiply_columns(const W* weight, std::int64_t stride, int rows, int width, const Vectors<A>& in,
                                     const Out& out) const {
    if (width == 0) return;
    A* mixed = m.mixed();
    sum_columns<kImages>(rows, width * kImages, mixed, m.scratch(), Mixed{weight, stride, in});
    __syncthreads();
    for (int e = threadIdx.x; e < width * in.count; e += blockDim.x) {
      const int i = e / width, c = e % width;
      out(c, i, mixed[c * kImages + i]);
    }
    __syncthreads();
  }

  // all(i) = gradients of the hidden activation's inputs
  SENET_DEVICE void share_hidden() const {
    const int R = call.image.R;
    const W* fc2 = static_cast<const W*>(call.p.fc2_weight) + std::int64_t{first_channel()} * R;
    multiply_columns(fc2, R, m.owned, R, {m.own(0), m.own_stride(), m.count}, [&](int r, int i, A sum) { m.out(i)[r] = sum; });
    m.share();
    m.join_all(R, [&](int i, int r, A sum) {
      const std::int64_t n = m.first + i;
      const A z = parts.hidden_inputs(n)[r], grad = activate_grad<A>(call.p.activation, z, sum);
      if (m.rank == 0) {
        static_cast<A*>(to.grad_hidden)[n * R + r] = grad;
        static_cast<A*>(to.hidden)[n * R + r] = activate<A>(call.p.activation, z);
      }
      return grad;
    });
  }

  // shifts(i): what every element of the slice's channels gets through the squeeze
  SENET_DEVICE void pass_squeeze() const {
    const int K = call.image.K, first = first_channel();
    const auto shift = [&](int c, int i, A sum) { (m.shares_channels() ? m.own(i) : m.shifts(i))[c] = sum / A(call.elements); };
    if (call.p.excitation == Excitation::channel_conv) {
      for (int e = threadIdx.x; e < m.count * m.owned; e += blockDim.x) {
        const int i = e / m.owned, c = e % m.owned;
        shift(c, i, parts.through_taps(first + c, m.all(i)));
      }
      __syncthreads();
    } else {
      const int rows = call.p.excitation == Excitation::two_fc ? call.image.R : K;
      multiply_columns(static_cast<const W*>(call.p.fc1_weight) + first, K, rows, m.owned, {m.all(0), m.all_stride(), m.count},
                       shift);
    }
    m.spread([&](int i) { return m.own(i); }, [&](int i) { return m.shifts(i); });
  }
};

}  // namespace senet::cuda
