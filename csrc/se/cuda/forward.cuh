// Forward: squeeze, excite and scale in one launch. fc1 is linear, so every tile turns its share of the squeezed channels into
// a share of the hidden layer; the last tile of an image adds these shares up in the order of tiles, and each tile computes the
// gates of its own channels. Every sum has a fixed order: the bits depend on shape, types, alignment and the size of tiles.
#pragma once
#include "se/cuda/forward_parts.cuh"
#include "se/cuda/tickets.cuh"

namespace senet::cuda {

struct ForwardLaunch {
  ForwardCall call;
  Tickets tickets;
  // scratch, in the type of sums
  void* partial_hidden;    // [B, tiles, R]
  void* hidden;            // [B, R], behind the activation
  void* partial_squeezed;  // [B, parts, K], where more than one tile has the same channels and squeezed is wanted
  void* squeezed;          // row by row of squeezed_stride; null where nobody wants it
  std::int64_t squeezed_stride;
};

inline ForwardLaunch launch_of(const ForwardParams& p, const Plan& plan, unsigned* counters, Scratch& scratch) {
  const auto [B, O, K, I, R] = p.shape;
  ForwardLaunch l{call_of(p, plan.tiles, plan.lanes, plan.room),
                  {counters, static_cast<int>(B), plan.lag, static_cast<unsigned>(plan.tiles.count())}};
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

template <class T, class W, bool kGeneral>
struct Forward {
  using A = Sum<T>;

  template <int kBlock>
  struct Shared {
    TicketWords words;
    alignas(16) A channels[kMaxChannels];  // squeezed, or gates
    A scratch[kBlock * scratch_of(sizeof(T))];
  };

  const ForwardLaunch& l;
  const ForwardParts<T, W, kGeneral> parts;
  A *channels, *scratch;
  TicketWords& words;

  template <int kBlock>
  SENET_DEVICE static void run(const ForwardLaunch& launch, Shared<kBlock>& shared) {
    const Forward forward{launch, {launch.call}, shared.channels, shared.scratch, shared.words};
    for_tickets<sizeof(T) != 8>(launch.tickets, shared.words, [&](const Job& job) { forward.work(job); });
  }

 private:
  SENET_DEVICE const ForwardParams& p() const { return l.call.p; }
  SENET_DEVICE const Image& image() const { return l.call.image; }

  SENET_DEVICE void work(const Job& job) const {
    const Tile tile = tile_of(job.tile, image());
    const T* x = static_cast<const T*>(p().x) + job.image * p().x_batch_stride + tile.offset;
    if (job.phase == Phase::first) {
      squeeze(job, tile, x);
      if (arrive(l.tickets, words, job.image)) {
        join(job.image);
        publish(l.tickets, job.image);
      }
    } else {
      wait_for_image(l.tickets, job.image);
      excite(job.image, tile);
      __syncthreads();
      parts.template scale<true>(job.image, tile, channels, x);
    }
  }

  SENET_DEVICE void squeeze(const Job& job, const Tile& tile, const T* x) const {
    const int K = image().K;
    parts.sum(x, tile, channels, scratch);
    __syncthreads();
    A* squeezed = image().parts > 1
                      ? static_cast<A*>(l.partial_squeezed) + (std::int64_t{job.image} * image().parts + tile.part) * K
                      : static_cast<A*>(l.squeezed) + job.image * l.squeezed_stride;
    for (int c = threadIdx.x; c < tile.channels; c += blockDim.x) {
      channels[c] /= A(l.call.elements);
      if (l.squeezed) squeezed[tile.channel + c] = channels[c];
    }
    if (p().excitation != Excitation::two_fc) return;
    __syncthreads();
    A* partial = static_cast<A*>(l.partial_hidden) + (std::int64_t{job.image} * image().count + job.tile) * image().R;
    multiply_rows<1>(static_cast<const W*>(p().fc1_weight) + tile.channel, K, image().R, tile.channels,
                     Vectors<A>{channels, 0, 1}, [&](int r, int, A sum) { partial[r] = sum; });
  }

  SENET_DEVICE void join(int n) const {
    const int K = image().K, R = image().R;
    if (l.squeezed && image().parts > 1) {
      A* squeezed = static_cast<A*>(l.squeezed) + n * l.squeezed_stride;
      const A* partial = static_cast<const A*>(l.partial_squeezed) + std::int64_t{n} * image().parts * K;
      sum_rows(image().parts, K, channels, scratch, MatrixRows<A, A>{partial, K}, [&](int k, A sum) { squeezed[k] = sum; });
    }
    if (p().excitation != Excitation::two_fc) return;
    A* hidden = static_cast<A*>(l.hidden) + std::int64_t{n} * R;
    const A* partial = static_cast<const A*>(l.partial_hidden) + std::int64_t{n} * image().count * R;
    sum_rows(image().count, R, channels, scratch, MatrixRows<A, A>{partial, R},
             [&](int r, A sum) { hidden[r] = parts.hidden(n, r, sum, true); });
  }

  // channels = the gates of the tile
  SENET_DEVICE void excite(int n, const Tile& tile) const {
    const A* in = p().excitation == Excitation::two_fc ? static_cast<const A*>(l.hidden) + std::int64_t{n} * image().R
                                                       : static_cast<const A*>(l.squeezed) + n * l.squeezed_stride;
    parts.template gate_inputs<1>(tile.channel, tile.channels, {in, 0, 1}, [&](int c, int, A z) { channels[c] = z; });
    __syncthreads();
    for (int c = threadIdx.x; c < tile.channels; c += blockDim.x) {
      channels[c] = parts.gate(n, tile.channel + c, channels[c], tile.part == 0);
    }
  }
};

}  // namespace senet::cuda
