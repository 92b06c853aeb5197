// Backward in one launch: the first phase reads grad_y and x once and sums the gradient of every gate, the second writes
// grad_x, and the last sums the gradients of the weights over all images, in their order. No floating-point atomics.
#pragma once
#include "se/cuda/tickets.cuh"
#include "se/cuda/weights.cuh"

namespace senet::cuda {

struct BackwardLaunch {
  BackwardCall call;
  Tickets tickets;
  // scratch, in the type of sums
  WeightSums sums;
  void* partial_gate;    // [B, parts, K], where more than one tile has the same channels
  void* partial_hidden;  // [B, tiles, R], two_fc only
};

inline BackwardLaunch launch_of(const BackwardParams& p, const Plan& plan, unsigned* counters, Scratch& scratch,
                                int threads = kThreads) {
  const auto [B, O, K, I, R] = p.shape;
  BackwardLaunch l{call_of(p, plan.tiles, plan.lanes, plan.room),
                   {counters, static_cast<int>(B), plan.lag, static_cast<unsigned>(plan.tiles.count())}};
  l.tickets.last = weight_jobs(p, threads);
  l.sums = weight_sums(p, scratch);
  if (plan.tiles.parts() > 1) l.partial_gate = scratch.take(B * plan.tiles.parts() * K);
  if (p.excitation == Excitation::two_fc) l.partial_hidden = scratch.take(B * plan.tiles.count() * R);
  return l;
}

template <class T, class W, bool kGeneral>
struct Backward {
  using A = Sum<T>;

  template <int kBlock>
  struct Shared {
    TicketWords words;
    A gates[kMaxChannels];
    A channels[kMaxChannels];  // gradients of the gates' inputs, or what every element of a channel gets through the squeeze
    A scratch[kBlock * scratch_of(sizeof(T))];
    double warps[kBlock / 32];
  };

  const BackwardLaunch& l;
  const BackwardParts<T, W, kGeneral> parts;
  A *gates, *channels, *scratch;
  double* warps;
  TicketWords& words;

  template <int kBlock>
  SENET_DEVICE static void run(const BackwardLaunch& launch, Shared<kBlock>& shared) {
    const Backward backward{launch, {launch.call}, shared.gates, shared.channels, shared.scratch, shared.warps, shared.words};
    for_tickets<!kGeneral && sizeof(T) != 8>(launch.tickets, shared.words, [&](const Job& job) { backward.work(job); });
  }

 private:
  SENET_DEVICE const BackwardParams& p() const { return l.call.p; }
  SENET_DEVICE const Image& image() const { return l.call.image; }
  SENET_DEVICE A* row(void* matrix, std::int64_t n, int width) const { return static_cast<A*>(matrix) + n * width; }

  SENET_DEVICE void work(const Job& job) const {
    if (job.phase == Phase::last) {
      wait_for_all_images(l.tickets);
      return WeightGradients<T, W>{l.call, l.sums, l.tickets.images, warps}.run(job.tile);
    }
    const Tile tile = tile_of(job.tile, image());
    if (job.phase == Phase::first) {
      reduce(job, tile);
      if (arrive(l.tickets, words, job.image)) {
        join(job.image);
        publish(l.tickets, job.image);
      }
    } else if (p().grad_x) {
      wait_for_image(l.tickets, job.image);
      write(job.image, tile);
    }
  }

  SENET_DEVICE void reduce(const Job& job, const Tile& tile) const {
    const int K = image().K, R = image().R;
    if (l.call.activated) {
      parts.compute_gates(job.image, tile, gates);
      __syncthreads();
    }
    const T* grad_y = static_cast<const T*>(p().grad_y) + job.image * l.call.image_stride + tile.offset;
    parts.template sum<false>(job.image, tile, grad_y, gates, channels, scratch);
    __syncthreads();
    const A* z = parts.gate_inputs(job.image) + tile.channel;
    A* grads = image().parts > 1 ? row(l.partial_gate, std::int64_t{job.image} * image().parts + tile.part, K)
                                 : row(l.sums.grad_gate, job.image, K);
    for (int c = threadIdx.x; c < tile.channels; c += blockDim.x) {
      channels[c] = activate_grad<A>(p().gate, z[c], channels[c]);
      grads[tile.channel + c] = channels[c];
    }
    if (p().excitation != Excitation::two_fc) return;
    __syncthreads();
    const W* fc2 = static_cast<const W*>(p().fc2_weight) + std::int64_t{tile.channel} * R;
    A* partial = row(l.partial_hidden, std::int64_t{job.image} * image().count + job.tile, R);
    sum_rows(tile.channels, R, gates, scratch, MatrixRows<W, A>{fc2, R, channels}, [&](int r, A sum) { partial[r] = sum; });
  }

  SENET_DEVICE void join(int n) const {
    const int K = image().K, R = image().R;
    if (image().parts > 1) {
      const A* partial = row(l.partial_gate, std::int64_t{n} * image().parts, K);
      A* grads = row(l.sums.grad_gate, n, K);
      sum_rows(image().parts, K, channels, scratch, MatrixRows<A, A>{partial, K}, [&](int k, A sum) { grads[k] = sum; });
    }
    if (p().excitation != Excitation::two_fc) return;
    const A *partial = row(l.partial_hidden, std::int64_t{n} * image().count, R), *z = parts.hidden_inputs(n);
    A *hidden = row(l.sums.hidden, n, R), *grads = row(l.sums.grad_hidden, n, R);
    sum_rows(image().count, R, channels, scratch, MatrixRows<A, A>{partial, R}, [&](int r, A sum) {
      grads[r] = activate_grad<A>(p().activation, z[r], sum);
      hidden[r] = activate<A>(p().activation, z[r]);
    });
  }

  SENET_DEVICE void write(int n, const Tile& tile) const {
    const int K = image().K, R = image().R;
    parts.compute_gates(n, tile, gates);
    __syncthreads();
    const W* fc1 = static_cast<const W*>(p().fc1_weight);
    const A* grads = row(l.sums.grad_gate, n, K);
    if (p().excitation == Excitation::channel_conv) {
      for (int c = threadIdx.x; c < tile.channels; c += blockDim.x) {
        channels[c] = parts.through_taps(tile.channel + c, grads) / A(l.call.elements);
      }
      __syncthreads();
    } else {
      const bool two_fc = p().excitation == Excitation::two_fc;
      const A* in = two_fc ? row(l.sums.grad_hidden, n, R) : grads;
      sum_rows(two_fc ? R : K, tile.channels, channels, scratch, MatrixRows<W, A>{fc1 + tile.channel, K, in},
               [&](int c, A sum) { channels[c] = sum / A(l.call.elements); });
    }
    const T* grad_v = static_cast<const T*>(l.call.activated ? p().grad_residual : p().grad_y) + n * l.call.image_stride;
    parts.template write<true>(n, tile, gates, channels, grad_v + tile.offset);
  }
};

}  // namespace senet::cuda
