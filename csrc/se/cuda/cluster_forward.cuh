// Forward by clusters: x is read once, into shared memory, and scaled there. See cluster.cuh for the exchange.
#pragma once
#include "se/cuda/cluster.cuh"
#include "se/cuda/forward_parts.cuh"

namespace senet::cuda {

struct ClusterForwardLaunch {
  ForwardCall call;
  ClusterCut cut;
};
inline ClusterForwardLaunch launch_of(const ForwardParams& p, const ClusterPlan& plan, Scratch&) {
  return {call_of(p, plan.slices, plan.lanes, plan.room), {p, plan, false}};
}

// kImages: those a weight is multiplied with; the plan's or more.
template <class T, class W, bool kGeneral, int kImages>
struct ClusterForward {
  using A = float;

  const ForwardCall& call;
  const ForwardParts<T, W, kGeneral> parts;
  Member<T>& m;

  SENET_DEVICE static void run(const ClusterForwardLaunch& launch, unsigned char* shared) {
    const ForwardParams& p = launch.call.p;
    Member<T> member(launch.cut, launch.call.image, p.x, p.x_batch_stride, shared);
    const ClusterForward forward{launch.call, {launch.call}, member};
    member.for_turns([&] { forward.turn(); });
  }

 private:
  SENET_DEVICE void turn() const {
    for (int i = 0; i < m.count; ++i) {
      parts.sum(m.slice(i, m.first + i), m.tile, m.sums(i), m.scratch(), m.ready(i));
      __syncthreads();
    }
    m.join_parts();
    squeeze();
    if (call.p.excitation == Excitation::two_fc) {
      share_hidden();
    } else {
      share_squeezed();
    }
    excite();
    for (int i = 0; i < m.count; ++i) {
      m.for_chunks(i, [&](const Tile& chunk, int at) {
        parts.template scale<false>(m.first + i, chunk, m.gates(i) + chunk.channel - m.tile.channel,
                                    m.slice(i, m.first + i) + at);
      });
    }
  }

  SENET_DEVICE void squeeze() const {
    A* saved = static_cast<A*>(call.p.saved);
    for (int e = threadIdx.x; e < m.count * m.owned; e += blockDim.x) {
      const int i = e / m.owned, c = e % m.owned;
      const A mean = m.own(i)[c] / A(call.elements);
      m.own(i)[c] = mean;
      if (saved) saved[(m.first + i) * call.saved_stride + m.tile.channel + m.begin + c] = mean;
    }
    __syncthreads();
  }

  SENET_DEVICE void share_hidden() const {
    const W* fc1 = static_cast<const W*>(call.p.fc1_weight) + m.tile.channel + m.begin;
    multiply_rows<kImages>(fc1, call.image.K, call.image.R, m.owned, Vectors<A>{m.own(0), m.own_stride(), m.count},
                           [&](int r, int i, A sum) { m.out(i)[r] = sum; });
    __syncthreads();
    m.share();
    m.join_all(call.image.R, [&](int i, int r, A sum) { return parts.hidden(m.first + i, r, sum, m.rank == 0); });
  }
  SENET_DEVICE void share_squeezed() const {
    m.share();
    m.collect_all();
  }

  // gates(i): of the slice's channels
  SENET_DEVICE void excite() const {
    const int first = m.tile.channel + m.begin;
    A* z = m.own(0);
    const int stride = m.own_stride();
    parts.template gate_inputs<kImages>(first, m.owned, {m.all(0), m.all_stride(), m.count},
                                        [&](int c, int i, A sum) { z[i * stride + c] = sum; });
    __syncthreads();
    for (int e = threadIdx.x; e < m.count * m.owned; e += blockDim.x) {
      const int i = e / m.owned, c = e % m.owned;
      const A gate = parts.gate(m.first + i, first + c, z[i * stride + c], true);
      (m.shares_channels() ? m.own(i) : m.gates(i))[c] = gate;
    }
    __syncthreads();
    m.spread([&](int i) { return m.own(i); }, [&](int i) { return m.gates(i); });
  }
};

}  // namespace senet::cuda
