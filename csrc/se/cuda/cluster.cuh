// A block as a member of its cluster: its slices in shared memory, and what goes from block to block.
//
// Slices arrive by bulk copies, in chunks with a barrier each, so that sums begin with the first. When a chunk has been written
// to y, the same chunk of the next image takes its place: loads of the next images run beside stores of these.
//
// Vectors go to other blocks by stores that the receiver's barrier counts: no fence, no barrier of the cluster. All blocks send
// the same vectors to all in every turn (share), into two places by turns. Therefore a block that has received a turn's
// knows that its peers are done with the turn before, and may send them the next turn's into the same place.
#pragma once
#include "se/cuda/cluster_plan.h"
#include "se/cuda/tile.cuh"

namespace senet::cuda {

struct ClusterCut {
  ClusterPlan plan;
  ClusterSpace space;
  int images;  // of the batch
  int chunk;   // elements of a chunk
  Divisor by_chunk;

  ClusterCut(const Params& p, const ClusterPlan& plan, bool backward)
      : plan(plan),
        space(space_of(p, plan, backward)),
        images(static_cast<int>(p.shape.B)),
        chunk(static_cast<int>(plan.chunk_elements())),
        by_chunk(divisor(chunk)) {}
};

SENET_DEVICE int fours_of(int n) { return (n + 3) / 4; }

template <class T>
class Member {
 public:
  using A = float;
  using Four = Vector<A, 4>;

  Tile tile;                           // its slice
  int rank, members;                   // members: blocks with a slice
  int begin, owned;                    // its channels are tile.channel + begin .., as many as `owned`
  int first = 0, count = 0, turn = 0;  // images in this turn

  // source: what is kept in shared memory, images `stride` elements apart
  SENET_DEVICE Member(const ClusterCut& cut, const Image& image, const void* source, std::int64_t stride, unsigned char* shared)
      : tile(tile_of(static_cast<int>(cluster_rank()) < image.count ? cluster_rank() : 0, image)),
        rank(cluster_rank()),
        members(image.count),
        cut_(cut),
        image_(image),
        source_(static_cast<const T*>(source) + tile.offset),
        stride_(stride),
        shared_(shared),
        elements_(tile.channels * tile.rows * tile.columns),
        fours_(fours_of(tile.channels)) {
    begin = 4 * share_of(tile.part);
    const int end = 4 * share_of(tile.part + 1);
    owned = (end < tile.channels ? end : tile.channels) - begin;
  }

  // vectors in shared memory: of the slice's channels, of the channels it owns, what it shares, and what all have shared
  SENET_DEVICE A* sums(int i) const { return floats(cut_.space.sums, i * cut_.space.channels); }
  SENET_DEVICE A* gates(int i) const { return floats(cut_.space.gates, i * cut_.space.channels); }
  SENET_DEVICE A* shifts(int i) const { return floats(cut_.space.shifts, i * cut_.space.channels); }
  SENET_DEVICE A* own(int i) const { return floats(cut_.space.owned, i * own_stride()); }
  SENET_DEVICE A* out(int i) const { return floats(cut_.space.out, i * out_stride()); }
  SENET_DEVICE A* all(int i) const { return floats(cut_.space.all, i * all_stride()); }
  SENET_DEVICE A* mixed() const { return floats(cut_.space.mixed, 0); }
  SENET_DEVICE A* scratch() const { return floats(cut_.space.scratch, 0); }
  SENET_DEVICE int all_stride() const { return cut_.space.all_width; }
  SENET_DEVICE int own_stride() const { return image_.parts > 1 ? cut_.space.own : cut_.space.channels; }
  SENET_DEVICE int out_stride() const { return cut_.space.out == cut_.space.owned ? own_stride() : cut_.space.out_width; }
  SENET_DEVICE bool shares_channels() const { return image_.parts > 1; }

  // body() for every turn of this cluster: images first .. first + count, in places 0 .. count.
  template <class Body>
  SENET_DEVICE void for_turns(const Body& body) {
    const int images = cut_.plan.images, step = static_cast<int>(gridDim.x) / cut_.plan.size * images;
    first = static_cast<int>(blockIdx.x) / cut_.plan.size * images;
    start();
    if (rank >= members) return cluster_wait();
    for (; first < cut_.images; first += step, ++turn) {
      next_ = first + step;
      count = images < cut_.images - first ? images : cut_.images - first;
      __syncthreads();
      if (threadIdx.x == 0) {
        expect(from_all_barrier(), members * count * cut_.space.out_width * 4);
        if (shares_channels()) {
          expect(parts_barrier(), image_.parts * count * fours_of(owned) * 16);
          expect(spread_barrier(), count * fours_ * 16);
        }
      }
      body();
    }
  }

  // The slice of image n, in place i.
  SENET_DEVICE T* slice(int i, int n) const {
    const int behind = static_cast<int>(reinterpret_cast<std::uintptr_t>(global(n)) % 16);
    return reinterpret_cast<T*>(shared_ + cut_.space.slices + i * cut_.space.slice_bytes + behind);
  }

  // ready(end): waits until the elements of place i before `end` are there. Called with ends in any order.
  struct Ready {
    const Member& member;
    int i;
    mutable int seen;  // elements that are there

    SENET_DEVICE void operator()(std::int64_t end) const {
      while (seen < end) {
        wait(member.arrival(i, divide(seen, member.cut_.by_chunk)), member.turn & 1);
        seen += member.cut_.chunk;
      }
    }
  };
  SENET_DEVICE Ready ready(int i) const { return {*this, i, 0}; }

  // chunk(tile, at) for the chunks of place i, at: of its first element in the slice. Behind it the place is filled again.
  template <class Chunk>
  SENET_DEVICE void for_chunks(int i, const Chunk& chunk) const {
    const int chunks = chunks_here(), next = next_ + i;
    for (int k = 0; k < chunks; ++k) {
      wait(arrival(i, k), turn & 1);
      chunk(chunk_of(k), k * cut_.chunk);
      __syncthreads();
      // A vector on the border of two chunks belongs to the first, and is still read with the second.
      if (threadIdx.x == 0 && next < cut_.images) {
        if (k > 0) load(i, next, k - 1);
        if (k == chunks - 1) load(i, next, k);
      }
    }
    if (next < cut_.images) load_ends(i, next);
  }

  // ---- from block to block ----

  // own(i)[c] = the sums, over the slices with these channels, of sums(i)[begin + c]; thread t sees t, t + blockDim.x, ... of
  // these count * owned numbers.
  SENET_DEVICE void join_parts() const {
    join_cluster();
    if (!shares_channels()) return;
    const int parts = image_.parts;
    for (int e = threadIdx.x; e < count * fours_; e += blockDim.x) {
      const int i = e / fours_, v = e % fours_, part = ((v + 1) * parts - 1) / fours_;
      push(reinterpret_cast<Four*>(from_part(tile.part, i)) + (v - share_of(part)), rank - tile.part + part, parts_barrier(),
           reinterpret_cast<const Four*>(sums(i))[v]);
    }
    wait_for_peers(parts_barrier(), turn & 1);
    for (int e = threadIdx.x; e < count * owned; e += blockDim.x) {
      const int i = e / owned, c = e % owned;
      A sum = from_part(0, i)[c];
      for (int part = 1; part < parts; ++part) sum += from_part(part, i)[c];
      own(i)[c] = sum;
    }
  }

  // Sends out(i) to all members, and waits for theirs: shared_by(member, i). A barrier has to come before, and after it was
  // read.
  SENET_DEVICE void share() const {
    const int width = cut_.space.out_width / 4;
    for (int e = threadIdx.x; e < count * width * members; e += blockDim.x) {
      const int to = e % members, v = e / members % width, i = e / members / width;
      push(reinterpret_cast<Four*>(shared_by(rank, i)) + v, to, from_all_barrier(), reinterpret_cast<const Four*>(out(i))[v]);
    }
    wait_for_peers(from_all_barrier(), turn >> 1 & 1);
  }
  SENET_DEVICE A* shared_by(int member, int i) const {
    return floats(cut_.space.from_all, (((turn & 1) * members + member) * cut_.plan.images + i) * cut_.space.out_width);
  }
  // all(i)[r] = made(i, r, the sum of what all have shared, in their order), for r < width.
  template <class Made>
  SENET_DEVICE void join_all(int width, const Made& made) const {
    for (int e = threadIdx.x; e < count * width; e += blockDim.x) {
      const int i = e / width, r = e % width;
      A sum = shared_by(0, i)[r];
      for (int member = 1; member < members; ++member) sum += shared_by(member, i)[r];
      all(i)[r] = made(i, r, sum);
    }
    __syncthreads();
  }
  // all(i)[k] = what the owner of channel k has shared.
  SENET_DEVICE void collect_all() const {
    const int parts = image_.parts, width = cut_.space.own;
    for (int e = threadIdx.x; e < count * members * width; e += blockDim.x) {
      const int c = e % width, member = e / width % members, i = e / width / members, part = member % parts;
      const int from = member / parts * image_.tiles.channels, rest = image_.K - from;
      const int channels = image_.tiles.channels < rest ? image_.tiles.channels : rest, vectors = fours_of(channels);
      const int channel = 4 * (vectors * part / parts) + c, end = 4 * (vectors * (part + 1) / parts);
      if (channel < (end < channels ? end : channels)) all(i)[from + channel] = shared_by(member, i)[c];
    }
    __syncthreads();
  }

  // from(i)[c], c < owned, of all slices with these channels become to(i)[..] of all the slice's channels. A barrier has to
  // come before.
  template <class From, class To>
  SENET_DEVICE void spread(const From& from, const To& to) const {
    if (!shares_channels()) return;
    const int parts = image_.parts, vectors = fours_of(owned);
    for (int e = threadIdx.x; e < count * vectors * parts; e += blockDim.x) {
      const int part = e % parts, v = e / parts % vectors, i = e / parts / vectors;
      push(reinterpret_cast<Four*>(to(i) + begin) + v, rank - tile.part + part, spread_barrier(),
           reinterpret_cast<const Four*>(from(i))[v]);
    }
    wait_for_peers(spread_barrier(), turn & 1);
  }

 private:
  const ClusterCut& cut_;
  const Image& image_;
  const T* source_;
  std::int64_t stride_;
  unsigned char* shared_;
  int elements_, fours_;
  int next_ = 0;

  SENET_DEVICE A* floats(int at, int index) const { return reinterpret_cast<A*>(shared_ + at) + index; }
  SENET_DEVICE A* from_part(int part, int i) const {
    return floats(cut_.space.from_parts, (part * cut_.plan.images + i) * cut_.space.own);
  }
  SENET_DEVICE int share_of(int part) const { return fours_ * part / image_.parts; }

  SENET_DEVICE Barrier* barrier(int index) const { return reinterpret_cast<Barrier*>(shared_ + cut_.space.barriers) + index; }
  SENET_DEVICE Barrier* from_all_barrier() const { return barrier(turn & 1); }
  SENET_DEVICE Barrier* parts_barrier() const { return barrier(2); }
  SENET_DEVICE Barrier* spread_barrier() const { return barrier(3); }
  SENET_DEVICE Barrier* arrival(int i, int k) const { return barrier(4 + i * cut_.plan.chunks + k); }

  SENET_DEVICE const T* global(int n) const { return source_ + n * stride_; }
  SENET_DEVICE int chunks_here() const { return divide(elements_ - 1, cut_.by_chunk) + 1; }

  SENET_DEVICE Tile chunk_of(int k) const {
    const ClusterPlan& plan = cut_.plan;
    const auto least = [](int a, int b) { return a < b ? a : b; };
    Tile chunk = tile;
    if (tile.rows > 1) {
      chunk.rows = least(plan.chunk_rows, tile.rows - k * plan.chunk_rows);
    } else if (tile.channels > 1) {
      chunk.channel += k * plan.chunk_channels;
      chunk.channels = least(plan.chunk_channels, tile.channels - k * plan.chunk_channels);
    } else {
      chunk.columns = least(plan.chunk_columns, tile.columns - k * plan.chunk_columns);
    }
    chunk.offset += k * cut_.chunk;
    return chunk;
  }

  // Vectors of a slice begin behind its first boundary of 16 bytes; what stands before and behind them goes one by one.
  struct Whole {
    int begin, end;
    SENET_DEVICE Whole(const T* from, int elements) {
      constexpr int n = Vector<T>::kItems;
      const int before = misaligned(from);
      begin = before < elements ? before : elements;
      end = begin + (elements - begin) / n * n;
    }
    // the first of them at e or behind it
    SENET_DEVICE int up(int e) const {
      constexpr int n = Vector<T>::kItems;
      const int at = e <= begin ? begin : begin + (e - begin + n - 1) / n * n;
      return at < end ? at : end;
    }
  };

  // By one thread.
  SENET_DEVICE void load(int i, int n, int k) const {
    const T* from = global(n);
    const Whole vectors(from, elements_);
    const int size = cut_.chunk, at = vectors.up(k * size);
    const unsigned bytes = (vectors.up((k + 1) * size) - at) * static_cast<int>(sizeof(T));
    expect(arrival(i, k), bytes);
    if (bytes > 0) copy_to_shared(slice(i, n) + at, from + at, bytes, arrival(i, k));
  }
  // By the block; visible behind its next barrier.
  SENET_DEVICE void load_ends(int i, int n) const {
    if (threadIdx.x >= 32) return;
    const T* from = global(n);
    T* to = slice(i, n);
    const Whole vectors(from, elements_);
    for (int e = threadIdx.x; e < vectors.begin; e += 32) to[e] = from[e];
    for (int e = vectors.end + threadIdx.x; e < elements_; e += 32) to[e] = from[e];
    before_copies();  // of another image, which may begin elsewhere
  }

  SENET_DEVICE void start() const {
    if (threadIdx.x == 0) {
      for (int b = 0; b < 4 + cut_.plan.images * cut_.plan.chunks; ++b) init_barrier(barrier(b));
      publish_barriers();
    }
    __syncthreads();
    cluster_arrive();
    if (rank >= members) return;
    for (int i = 0; i < cut_.plan.images && first + i < cut_.images; ++i) {
      if (threadIdx.x < 32) {
        for (int k = threadIdx.x; k < chunks_here(); k += 32) load(i, first + i, k);
      }
      load_ends(i, first + i);
    }
  }
  // Before anything is sent: all blocks have started and initialised their barriers.
  SENET_DEVICE void join_cluster() const {
    if (turn == 0) cluster_wait();
  }
};

}  // namespace senet::cuda
