// A tile of an image and the two ways to go through it: sums per channel, and element by element.
#pragma once
#include <cstring>
#include <type_traits>

#include "se/cuda/device.cuh"

namespace senet::cuda {

// An image [O, K, I], dense, and its tiles; R as in Shape. What the kernels would compute again and again is here.
struct Image {
  int O, K, I, R;
  std::int64_t row;  // K * I
  Tiles tiles;
  int parts, count;    // of the tiles
  Divisor by_columns;  // of a tile
  int lanes;

  Image(const Shape& shape, const Tiles& tiles, int lanes)
      : O(static_cast<int>(shape.O)),
        K(static_cast<int>(shape.K)),
        I(static_cast<int>(shape.I)),
        R(static_cast<int>(shape.R)),
        row(shape.K * shape.I),
        tiles(tiles),
        parts(tiles.parts()),
        count(tiles.count()),
        by_columns(divisor(tiles.columns)),
        lanes(lanes) {}
};

struct Tile {
  int channel, channels, rows, columns;
  int part;             // which of the tiles with these channels
  std::int64_t offset;  // of its first element in the image
};

SENET_DEVICE Tile tile_of(int index, const Image& image) {
  const Tiles& t = image.tiles;
  const int part = index % image.parts, channel = index / image.parts * t.channels;
  const int row = part / t.column_tiles * t.rows, column = part % t.column_tiles * t.columns;
  const auto least = [](int a, int b) { return a < b ? a : b; };
  return {channel,
          least(t.channels, image.K - channel),
          least(t.rows, image.O - row),
          least(t.columns, image.I - column),
          part,
          row * image.row + std::int64_t{channel} * image.I + column};
}

// channels[j]: that of element `e + j` of a row, counted from the tile's first.
template <int n>
SENET_DEVICE void channels_of(int e, int columns, Divisor by_columns, int (&channels)[n]) {
  const int c = columns == 1 ? e : divide(e, by_columns), rest = e - c * columns;
#pragma unroll
  for (int j = 0; j < n; ++j) {
    if (columns == 1) {
      channels[j] = c + j;
    } else if (columns >= n) {
      channels[j] = c + (rest + j >= columns);
    } else {
      channels[j] = divide(e + j, by_columns);
    }
  }
}

// One item, or the items of a vector, between their load and their use: half types two in a register. What is loaded under a
// condition a compiler would carry item by item.
template <class T, int n>
struct Held {
  using Word = std::conditional_t<(n > 1 && sizeof(T) < 4), unsigned, T>;
  Vector<Word, n * sizeof(T) / sizeof(Word)> words;

  SENET_DEVICE T operator[](int j) const {
    if constexpr (std::is_same_v<Word, T>) {
      return words.items[j];
    } else {
      const auto bits = static_cast<unsigned short>(words.items[j / 2] >> j % 2 * 16);
      T item;
      std::memcpy(&item, &bits, sizeof item);
      return item;
    }
  }
};

// n successive elements: one, or the items of a vector, which is aligned. kLast: they may leave the cache, nobody reads them
// again. hold_items() is for loads under a condition.
template <int n, bool kLast, class T>
SENET_DEVICE Held<T, n> hold_items(const T* p) {
  if constexpr (n == 1) {
    return {{*p}};
  } else {
    const auto* held = reinterpret_cast<const decltype(Held<T, n>::words)*>(p);
    return {kLast ? load_streaming(held) : load_vector(held)};
  }
}
template <int n, bool kLast, class T>
SENET_DEVICE Vector<T, n> load_items(const T* p) {
  if constexpr (n == 1) {
    return {*p};
  } else {
    const auto* vector = reinterpret_cast<const Vector<T, n>*>(p);
    return kLast ? load_streaming(vector) : load_vector(vector);
  }
}
template <int n, class T>
SENET_DEVICE void store_items(T* p, const Vector<T, n>& v) {
  if constexpr (n == 1) {
    *p = v.items[0];
  } else {
    store_vector(reinterpret_cast<Vector<T, n>*>(p), v);
  }
}

// ---- sums ----

// sums[c], c < width, of `rows` rows of `width` elements, in shared memory; scratch is shared memory for n elements a thread.
// terms(row, c, out) gives n terms, those of columns c .. c + n. n divides width. The whole block calls it, and waits before it
// reads sums.
template <int n, class A, class Terms>
SENET_DEVICE void sum_columns(int rows, int width, A* sums, A* scratch, const Terms& terms) {
  const int threads = blockDim.x, items = width / n, across = items < threads ? items : threads, groups = threads / across;
  const int group = threadIdx.x / across;
  for (int item = threadIdx.x % across; item < items; item += across) {  // once, if there is more than one group
    if (group >= groups) break;
    A acc[n] = {};
#pragma unroll 4
    for (int row = group; row < rows; row += groups) {
      A out[n];
      terms(row, item * n, out);
#pragma unroll
      for (int j = 0; j < n; ++j) acc[j] += out[j];
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

// out(c, sum) for columns of any number. sums is shared memory for kMaxChannels numbers.
template <class A, class Terms, class Out>
SENET_DEVICE void sum_wide(int rows, int width, A* sums, A* scratch, const Terms& terms, const Out& out) {
  for (int from = 0; from < width; from += kMaxChannels) {
    const int some = width - from < kMaxChannels ? width - from : kMaxChannels;
    sum_columns<1>(rows, some, sums, scratch, [&](int row, int c, A(&term)[1]) { term[0] = terms(row, from + c); });
    __syncthreads();
    for (int c = threadIdx.x; c < some; c += blockDim.x) out(from + c, sums[c]);
    __syncthreads();
  }
}

// The same for a tile with I > 1: `lanes` threads go through each channel's columns. terms(at, c, out) gives the terms of the n
// elements from `at` on, n being 1 or the items of a vector; misaligned_at(at) is how many stand before the next boundary of 16
// bytes, or -1 where vectors cannot be used; ready(end) returns when the elements before `end` can be read.
template <int n, class A, class Terms, class Misaligned, class Ready>
SENET_DEVICE void sum_planes(const Tile& tile, std::int64_t I, std::int64_t row_stride, int lanes, A* sums, A* scratch,
                             const Terms& terms, const Misaligned& misaligned_at, const Ready& ready) {
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
        for (int i = from + first; i < to; i += lanes) {
          A out[1];
          terms(at + i, c, out);
          acc[0] += out[0];
        }
      };
      one_by_one(0, head);
#pragma unroll 4
      for (int v = first; v < vectors; v += lanes) {
        A out[n];
        terms(at + head + v * n, c, out);
#pragma unroll
        for (int j = 0; j < n; ++j) acc[j] += out[j];
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

// Of a tile, by whichever of the two. terms(at, c, step, out): the items' channels are c, c + step, ...; `before` as in
// for_tile.
template <int n, class A, class Terms, class Ready = AlwaysReady>
SENET_DEVICE void sum_tile(const Image& image, const Tile& tile, int before, A* sums, A* scratch, const Terms& terms,
                           const Ready& ready = {}) {
  const auto by_row = [&](int row, int c, auto& out) {
    ready(row * image.row + c + std::int64_t{sizeof(out) / sizeof(A)});
    terms(row * image.row + c, c, 1, out);
  };
  if (image.I > 1) {
    sum_planes<n>(
        tile, image.I, image.row, image.lanes, sums, scratch, [&](std::int64_t at, int c, auto& out) { terms(at, c, 0, out); },
        [&](std::int64_t at) { return before < 0 ? -1 : (before - static_cast<int>(at)) & (n - 1); }, ready);
  } else if (before == 0 && (tile.rows == 1 || image.K % n == 0) && tile.channels % n == 0) {
    sum_columns<n>(tile.rows, tile.channels, sums, scratch, by_row);
  } else {
    sum_columns<1>(tile.rows, tile.channels, sums, scratch, by_row);
  }
}

// ---- element by element ----

// For every element of the tile, n at a time: item.load(at), then item.store(loaded, at, e) with `at` the place in the tile's
// memory and e the index in the row. `head` elements of each row are left out, and those behind the last n.
template <int n, class Item>
SENET_DEVICE void for_items(int rows, int run, int head, std::int64_t row_stride, const Item& item) {
  constexpr int kAhead = Item::kAhead;  // loads in flight
  const int threads = blockDim.x, vectors = (run - head) / n;
  if (vectors == 0) return;
  const int row_step = threads / vectors, vector_step = threads % vectors;
  int row = threadIdx.x / vectors, vector = threadIdx.x % vectors;
  while (row < rows) {
    typename Item::template Loaded<n> loaded[kAhead];
    std::int64_t at[kAhead];
    int e[kAhead];
    bool inside[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      inside[i] = row < rows;
      e[i] = head + vector * n;
      at[i] = row * row_stride + e[i];
      if (inside[i]) loaded[i] = item.template load<n>(at[i]);
      row += row_step;
      vector += vector_step;
      if (vector >= vectors) vector -= vectors, ++row;
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (inside[i]) item.store(loaded[i], at[i], e[i]);
    }
  }
}

// All of them. `before` elements stand before the first boundary of 16 bytes, in all tensors; -1 where these differ.
template <int n, class Item>
SENET_DEVICE void for_tile(const Tile& tile, std::int64_t row_stride, int before, const Item& item) {
  const int run = tile.channels * tile.columns;
  if (before < 0 || (tile.rows > 1 && row_stride % n != 0)) return for_items<1>(tile.rows, run, 0, row_stride, item);
  const int head = before < run ? before : run, tail = head + (run - head) / n * n;
  for_items<n>(tile.rows, run, head, row_stride, item);
  for_items<1>(tile.rows, head, 0, row_stride, item);
  for_items<1>(tile.rows, run, tail, row_stride, item);
}

}  // namespace senet::cuda
