// Sums per channel of a tile, and of a matrix's columns.
//
// What is summed is an object: kAhead; load<n>(..) -> Loaded<n>, n being 1 or the items of a vector, reads memory, and
// terms(loaded, .., out) makes n terms of it. A thread has kAhead of them loaded before it uses the first, so that it waits
// for memory once for all of them. At the end some of these are the first again, and are not used: what is loaded on a
// condition a compiler keeps in registers from turn to turn. What is used on one it would load there; landed() is against that.
#pragma once
#include "se/cuda/tile.cuh"

namespace senet::cuda {

// sums[c], c < width, of `rows` rows of `width` elements, in shared memory; scratch is shared memory for n elements a thread.
// load<n>(row, c) and terms(loaded, row, c, out) are of columns c .. c + n, prepare(row, c) comes before them, for the last
// row. n divides width. The whole block calls it, and waits before it reads sums.
template <int n, class A, class Terms>
SENET_DEVICE void sum_columns(int rows, int width, A* sums, A* scratch, const Terms& terms) {
  constexpr int kAhead = Terms::kAhead;
  const int threads = blockDim.x, items = width / n, across = items < threads ? items : threads;
  const int groups = terms.groups(threads / across, rows), group = threadIdx.x / across;
#pragma unroll 1
  for (int item = threadIdx.x % across; item < items; item += across) {  // once, if there is more than one group
    if (group >= groups) break;
    A acc[n] = {};
#pragma unroll 1
    for (int row = group; row < rows; row += kAhead * groups) {
      const int c = item * n, last = row + (kAhead - 1) * groups;
      typename Terms::template Loaded<n> loaded[kAhead];
      int at[kAhead];
      terms.prepare(last < rows ? last : rows - 1, c + n);
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        at[i] = row + i * groups;
        loaded[i] = terms.template load<n>(at[i] < rows ? at[i] : row, c);
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) terms.landed(loaded[i]);
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (at[i] < rows) {
          A out[n];
          terms.terms(loaded[i], at[i], c, out);
#pragma unroll
          for (int j = 0; j < n; ++j) acc[j] += out[j];
        }
      }
    }
#pragma unroll
    for (int j = 0; j < n; ++j) (groups == 1 ? sums : scratch + group * width)[item * n + j] = acc[j];
  }
  if (groups == 1) return;
  __syncthreads();
  for (int c = threadIdx.x; c < width; c += threads) {
    A sum = scratch[c];
    for (int g = 1; g < groups; ++g) sum += scratch[g * width + c];
    sums[c] = sum;
  }
}

// Rows of a matrix, each times its factor if there are any: terms of sum_columns(). They come from the L2, a row after the
// other for each thread, so that several at once matter more than that all threads have some.
template <class W, class A>
struct MatrixRows {
  static constexpr int kAhead = 8, kItems = Vector<W>::kItems;
  template <int n>
  struct Loaded {
    Held<W, n> weights;
    A factor;
  };

  const W* matrix;
  std::int64_t stride;
  const A* factors;  // or null

  SENET_DEVICE static int groups(int possible, int rows) {
    const int wanted = (rows + kAhead - 1) / kAhead, most = wanted < 32 ? wanted : 32;  // which one thread adds up
    return possible < most ? possible : most;
  }
  SENET_DEVICE static void prepare(int, int) {}
  template <int n>
  SENET_DEVICE static void landed(Loaded<n>& loaded) {
    cuda::landed(loaded.weights);
  }
  SENET_DEVICE bool vectors(int width) const { return aligned(matrix) && stride % kItems == 0 && width % kItems == 0; }
  template <int n>
  SENET_DEVICE Loaded<n> load(int row, int c) const {
    return {hold_items<n, false>(matrix + row * stride + c), factors ? factors[row] : A(1)};
  }
  template <int n>
  SENET_DEVICE static void terms(const Loaded<n>& loaded, int, int, A (&out)[n]) {
#pragma unroll
    for (int j = 0; j < n; ++j) out[j] = A(widen(loaded.weights[j])) * loaded.factor;
  }
};

// out(c, sum) for columns of any number. sums is shared memory for kMaxChannels numbers.
template <class W, class A, class Out>
SENET_DEVICE void sum_rows(int rows, int width, A* sums, A* scratch, const MatrixRows<W, A>& matrix, const Out& out) {
  constexpr int kItems = MatrixRows<W, A>::kItems;
  const bool vectors = matrix.vectors(width);
#pragma unroll 1
  for (int from = 0; from < width; from += kMaxChannels) {
    const int some = width - from < kMaxChannels ? width - from : kMaxChannels;
    const MatrixRows<W, A> part{matrix.matrix + from, matrix.stride, matrix.factors};
    if (vectors) {
      sum_columns<kItems>(rows, some, sums, scratch, part);
    } else {
      sum_columns<1>(rows, some, sums, scratch, part);
    }
    __syncthreads();
    for (int c = threadIdx.x; c < some; c += blockDim.x) out(from + c, sums[c]);
    __syncthreads();
  }
}

// The same for a tile with I > 1: `lanes` threads go through each channel's columns. load<n>(at) and terms(loaded, at,
// channels, out) are of the n elements from `at` on; misaligned_at(at) is how many stand before the next boundary of 16 bytes,
// or -1 where vectors cannot be used; ready(end) returns when the elements before `end` can be read.
template <int n, class A, class Terms, class Misaligned, class Ready>
SENET_DEVICE void sum_planes(const Tile& tile, std::int64_t I, std::int64_t row_stride, int lanes, A* sums, A* scratch,
                             const Terms& terms, const Misaligned& misaligned_at, const Ready& ready) {
  constexpr int kAhead = Terms::kAhead;
  const int first = threadIdx.x & (lanes - 1), at_once = blockDim.x / lanes, warps = lanes / 32;
  for (int block = 0; block < tile.channels; block += at_once) {
    const int c = block + threadIdx.x / lanes;
    A acc[n] = {};
    for (int row = 0; c < tile.channels && row < tile.rows; ++row) {
      const std::int64_t at = row * row_stride + c * I;
      ready(at + tile.columns);
      const int before = misaligned_at(at);
      const int head = before >= 0 && before < tile.columns ? before : tile.columns, vectors = (tile.columns - head) / n;
      const auto one_by_one = [&](int from, int to) {
#pragma unroll 1
        for (int i = from + first; i < to; i += lanes) {
          A out[1];
          terms.terms(terms.template load<1>(at + i), at + i, {c}, out);
          acc[0] += out[0];
        }
      };
      one_by_one(0, head);
      int channels[n];
#pragma unroll
      for (int j = 0; j < n; ++j) channels[j] = c;
#pragma unroll 1
      for (int v = first; v < vectors; v += kAhead * lanes) {
        typename Terms::template Loaded<n> loaded[kAhead];
        int vector[kAhead];
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
          vector[i] = v + i * lanes;
          loaded[i] = terms.template load<n>(at + head + (vector[i] < vectors ? vector[i] : v) * n);
        }
#pragma unroll
        for (int i = 0; i < kAhead; ++i) terms.landed(loaded[i]);
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
          if (vector[i] < vectors) {
            A out[n];
            terms.terms(loaded[i], at + head + vector[i] * n, channels, out);
#pragma unroll
            for (int j = 0; j < n; ++j) acc[j] += out[j];
          }
        }
      }
      one_by_one(head + vectors * n, tile.columns);
    }
#pragma unroll
    for (int half = n / 2; half > 0; half /= 2) {
#pragma unroll
      for (int j = 0; j < half; ++j) acc[j] += acc[j + half];
    }
    const A sum = sum_lanes(acc[0], lanes < 32 ? lanes : 32);
    if (c >= tile.channels) continue;
    if (warps <= 1) {
      if (first == 0) sums[c] = sum;
    } else if (first % 32 == 0) {
      scratch[c * warps + first / 32] = sum;
    }
  }
  if (warps <= 1) return;
  __syncthreads();
  for (int c = threadIdx.x; c < tile.channels; c += blockDim.x) {
    A sum = scratch[c * warps];
    for (int w = 1; w < warps; ++w) sum += scratch[c * warps + w];
    sums[c] = sum;
  }
}

struct AlwaysReady {
  SENET_DEVICE void operator()(std::int64_t) const {}
};

// The rows of a tile with I = 1, as sum_columns() wants them.
template <class A, class Terms, class Ready>
struct TileRows {
  static constexpr int kAhead = Terms::kAhead;
  template <int n>
  using Loaded = typename Terms::template Loaded<n>;

  const Terms tile;
  const Ready& ready;
  std::int64_t stride;

  SENET_DEVICE static int groups(int possible, int) { return possible; }
  SENET_DEVICE void prepare(int row, int end) const { ready(row * stride + end); }
  template <int n>
  SENET_DEVICE static void landed(Loaded<n>& loaded) {
    Terms::landed(loaded);
  }
  template <int n>
  SENET_DEVICE Loaded<n> load(int row, int c) const {
    return tile.template load<n>(row * stride + c);
  }
  template <int n>
  SENET_DEVICE void terms(const Loaded<n>& loaded, int row, int c, A (&out)[n]) const {
    int channels[n];
#pragma unroll
    for (int j = 0; j < n; ++j) channels[j] = c + j;
    tile.terms(loaded, row * stride + c, channels, out);
  }
};

// The same where planes are small, or begin anywhere: the tile is one run of memory, through which all threads go, whole
// vectors of it whatever channels they are of. A vector has at most two (I >= n): of each it leaves two sums in `scratch`,
// which the lanes of a channel add up. So a tile waits for memory once or twice, and not for head, vectors and tail of each
// plane. As many channels at a time as there is room in scratch.
template <int n, class A, class Terms, class Ready>
SENET_DEVICE void sum_run(const Image& image, const Tile& tile, int before, A* sums, A* scratch, const Terms& terms,
                          const Ready& ready) {
  constexpr int kAhead = Terms::kAhead;
  const int I = image.I, threads = blockDim.x, thread = threadIdx.x, lanes = image.lanes < 32 ? image.lanes : 32;
  const int lane = thread & (lanes - 1), at_once = threads / lanes, most = image.room.channels;
  A* const ends = scratch;  // of the elements before the first vector, and from n on of those behind the last
  A *const first = ends + 2 * n, *const second = first + image.room.vectors;
#pragma unroll 1
  for (int from = 0; from < tile.channels; from += most) {
    const int channels = most < tile.channels - from ? most : tile.channels - from, run = channels * I;
    const std::int64_t begin = std::int64_t{from} * I;
    const int misaligned = (before - static_cast<int>(begin)) & (n - 1), head = misaligned < run ? misaligned : run;
    const int vectors = (run - head) / n, tail = head + vectors * n;
    // One element a thread: it is under way beside the vectors.
    const int end = thread < head ? thread : thread >= 32 && thread - 32 < run - tail ? tail + thread - 32 : -1;
    typename Terms::template Loaded<1> at_end;
    if (end >= 0) {
      ready(begin + end + 1);
      at_end = terms.template load<1>(begin + end);
    }
#pragma unroll 1
    for (int v = thread; v < vectors; v += kAhead * threads) {
      typename Terms::template Loaded<n> loaded[kAhead];
      const int last = v + (kAhead - 1) * threads;
      ready(begin + head + ((last < vectors ? last : vectors - 1) + 1) * n);
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int vector = v + i * threads;
        loaded[i] = terms.template load<n>(begin + head + (vector < vectors ? vector : v) * n);
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) terms.landed(loaded[i]);
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int vector = v + i * threads;
        if (vector < vectors) {
          const int e = head + vector * n;
          int channel[n];
          channels_of(e, I, image.by_columns, channel);
          const int own = channel[0];
#pragma unroll
          for (int j = 0; j < n; ++j) channel[j] += from;
          A out[n], sum = 0, other = 0;
          terms.terms(loaded[i], begin + e, channel, out);
#pragma unroll
          for (int j = 0; j < n; ++j) {
            const bool mine = channel[j] == own + from;
            sum += mine ? out[j] : A(0);
            other += mine ? A(0) : out[j];
          }
          first[vector] = sum;
          second[vector] = other;
        }
      }
    }
    if (end >= 0) {
      A out[1];
      terms.terms(at_end, begin + end, {from + (end < head ? 0 : channels - 1)}, out);
      ends[end < head ? end : n + end - tail] = out[0];
    }
    __syncthreads();
    for (int block = 0; block < channels; block += at_once) {
      const int c = block + thread / lanes;
      A sum = 0;
      if (c < channels) {
        const int low = c * I - head, high = low + I;  // of the vectors' elements
        const int stop = (high + n - 1) / n < vectors ? (high + n - 1) / n : vectors;
#pragma unroll 4
        for (int v = (low > 0 ? low / n : 0) + lane; v < stop; v += lanes) sum += v * n >= low ? first[v] : second[v];
        for (int i = lane; c == 0 && i < head; i += lanes) sum += ends[i];
        for (int i = lane; c == channels - 1 && i < run - tail; i += lanes) sum += ends[n + i];
      }
      sum = sum_lanes(sum, lanes);
      if (c < channels && lane == 0) sums[from + c] = sum;
    }
    if (from + most < tile.channels) __syncthreads();
  }
}

// Of a tile, by whichever of the three. terms(loaded, at, channels, out): the items' channels, from the tile's first; `before`
// as in for_tile. kRuns: whether there may be room for runs.
template <int n, bool kRuns, class A, class Terms, class Ready = AlwaysReady>
SENET_DEVICE void sum_tile(const Image& image, const Tile& tile, int before, A* sums, A* scratch, const Terms& terms,
                           const Ready& ready = {}) {
  const TileRows<A, Terms, Ready> rows{terms, ready, image.row};
  if (image.I > 1) {
    if constexpr (kRuns) {
      if (before >= 0 && image.room.channels > 0) return sum_run<n>(image, tile, before, sums, scratch, terms, ready);
    }
    sum_planes<n>(
        tile, image.I, image.row, image.lanes, sums, scratch, terms,
        [&](std::int64_t at) { return before < 0 ? -1 : (before - static_cast<int>(at)) & (n - 1); }, ready);
  } else if (before == 0 && (tile.rows == 1 || image.K % n == 0) && tile.channels % n == 0) {
    sum_columns<n>(tile.rows, tile.channels, sums, scratch, rows);
  } else {
    sum_columns<1>(tile.rows, tile.channels, sums, scratch, rows);
  }
}

}  // namespace senet::cuda
