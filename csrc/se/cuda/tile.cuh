// A tile of an image, vectors of it, and the way to go through it element by element; sums.cuh has sums per channel.
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
  SumRoom room;

  Image(const Shape& shape, const Tiles& tiles, int lanes, SumRoom room)
      : O(static_cast<int>(shape.O)),
        K(static_cast<int>(shape.K)),
        I(static_cast<int>(shape.I)),
        R(static_cast<int>(shape.R)),
        row(shape.K * shape.I),
        tiles(tiles),
        parts(tiles.parts()),
        count(tiles.count()),
        by_columns(divisor(tiles.columns)),
        lanes(lanes),
        room(room) {}
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
// again.
template <int n, bool kLast, class T>
SENET_DEVICE Held<T, n> hold_items(const T* p) {
  if constexpr (n == 1) {
    return {{*p}};
  } else {
    const auto* held = reinterpret_cast<const decltype(Held<T, n>::words)*>(p);
    return {kLast ? load_streaming(held) : load_vector(held)};
  }
}
// Where the compiler must have loaded them at the latest. Costs no instruction.
template <class T, int n>
SENET_DEVICE void landed(Held<T, n>& held) {
  if constexpr (n > 1) landed(held.words);
}
template <int n, class T>
SENET_DEVICE void store_items(T* p, const Vector<T, n>& v) {
  if constexpr (n == 1) {
    *p = v.items[0];
  } else {
    store_vector(reinterpret_cast<Vector<T, n>*>(p), v);
  }
}

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
      loaded[i] = item.template load<n>(inside[i] ? at[i] : at[0]);
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
