// Kernels over the two layers' weights. Part of kernels.inl.

// Rows of `in` times rows of `weight` in tiles of kB x kN dot products: enough sums in flight to hide an addition's latency,
// few enough for the registers. Each dot product has lanes and a tree of its own, whatever the tile.
constexpr int kTileB = SENET_VECTOR_BYTES == 64 ? 4 : SENET_VECTOR_BYTES == 32 ? 2 : 1;
constexpr int kTileN = SENET_VECTOR_BYTES == 64 ? 4 : 2;
constexpr int kTileN1 = SENET_VECTOR_BYTES == 64 ? 8 : SENET_VECTOR_BYTES == 32 ? 4 : 2;  // for a single image

template <class A, class W>
struct Weights {
  template <int kB, int kN>
  static SENET_INLINE void dot_tile(const A* in, int64_t in_stride, const W* weight, const W* bias, A* out, int64_t out_stride,
                                    int64_t M) {
    Vec<A> acc[kB][kN];
    for (auto& row : acc) {
      for (auto& v : row) v = broadcast(A(0));
    }
    constexpr int kLanes = Vec<A>::kLanes;
    int64_t m = 0;
    for (; m + kLanes <= M; m += kLanes) {
      Vec<A> w[kN];
      for (int n = 0; n < kN; ++n) w[n] = load<A>(weight + n * M + m);
      for (int b = 0; b < kB; ++b) {
        const Vec<A> v = load<A>(in + b * in_stride + m);
        for (int n = 0; n < kN; ++n) acc[b][n] = acc[b][n] + v * w[n];
      }
    }
    if (m < M) {
      for (int b = 0; b < kB; ++b) {
        for (int n = 0; n < kN; ++n) {
          const auto term = [&](int64_t i, auto load) { return load(in + b * in_stride + i) * load(weight + n * M + i); };
          acc[b][n] = add_rest<A>(acc[b][n], m, M, term);
        }
      }
    }
    for (int b = 0; b < kB; ++b) {
      for (int n = 0; n < kN; ++n) {
        const A offset = bias ? read_one(bias + n) : A(0);
        out[b * out_stride + n] = sum(acc[b][n]) + offset;
      }
    }
  }

  template <int kB, int kN>
  static SENET_INLINE void dot_rows(const A* in, int64_t in_stride, const W* weight, const W* bias, A* out, int64_t out_stride,
                                    int64_t M, int64_t begin, int64_t end) {
    int64_t n = begin;
    for (; n + kN <= end; n += kN) {
      dot_tile<kB, kN>(in, in_stride, weight + n * M, bias ? bias + n : nullptr, out + n, out_stride, M);
    }
    for (; n < end; ++n) {
      dot_tile<kB, 1>(in, in_stride, weight + n * M, bias ? bias + n : nullptr, out + n, out_stride, M);
    }
  }

  static void linear(const A* in, int64_t in_stride, const void* weight_, const void* bias_, A* out, int64_t out_stride,
                     int64_t B, int64_t M, int64_t begin, int64_t end) {
    const W *weight = static_cast<const W*>(weight_), *bias = static_cast<const W*>(bias_);
    // blocks of rows that stay in L1 while all images pass
    constexpr int64_t kBlock = 16;
    for (int64_t n = begin; n < end; n += kBlock) {
      const int64_t last = n + kBlock < end ? n + kBlock : end;
      int64_t b = 0;
      if constexpr (kTileB > 1) {
        for (; b + kTileB <= B; b += kTileB) {
          dot_rows<kTileB, kTileN>(in + b * in_stride, in_stride, weight, bias, out + b * out_stride, out_stride, M, n, last);
        }
      }
      for (; b < B; ++b) {
        dot_rows<1, kTileN1>(in + b * in_stride, in_stride, weight, bias, out + b * out_stride, out_stride, M, n, last);
      }
    }
  }

  // out[b, n] for kCount vectors of columns at once
  template <int kCount>
  static SENET_INLINE void columns(const A* in, const W* weight, A* out, int64_t M, int64_t N) {
    constexpr int kLanes = Vec<A>::kLanes;
    Vec<A> acc[kCount];
    for (auto& v : acc) v = broadcast(A(0));
    for (int64_t m = 0; m < M; ++m) {
      const Vec<A> v = broadcast(in[m]);
      for (int j = 0; j < kCount; ++j) acc[j] = acc[j] + v * load<A>(weight + m * N + j * kLanes);
    }
    for (int j = 0; j < kCount; ++j) store(acc[j], out + j * kLanes);
  }

  static void linear_transposed(const A* in, int64_t in_stride, const void* weight_, A* out, int64_t out_stride, int64_t B,
                                int64_t M, int64_t N, int64_t begin, int64_t end) {
    constexpr int kLanes = Vec<A>::kLanes, kCount = 4;
    const W* weight = static_cast<const W*>(weight_);
    int64_t n = begin;
    for (; n + kCount * kLanes <= end; n += kCount * kLanes) {
      for (int64_t b = 0; b < B; ++b) columns<kCount>(in + b * in_stride, weight + n, out + b * out_stride + n, M, N);
    }
    for (; n + kLanes <= end; n += kLanes) {
      for (int64_t b = 0; b < B; ++b) columns<1>(in + b * in_stride, weight + n, out + b * out_stride + n, M, N);
    }
    if (n == end) return;
    if (end - begin >= kLanes) {  // the last columns once more, as whole vectors
      n = end - kLanes;
      for (int64_t b = 0; b < B; ++b) columns<1>(in + b * in_stride, weight + n, out + b * out_stride + n, M, N);
      return;
    }
    const int64_t rest = end - n;
    for (int64_t b = 0; b < B; ++b) {
      A acc[kLanes] = {};
      for (int64_t m = 0; m < M; ++m) {
        for (int64_t j = 0; j < rest; ++j) acc[j] += in[b * in_stride + m] * read_one(weight + m * N + n + j);
      }
      copy(acc, out + b * out_stride + n, rest);
    }
  }

  // kRows rows of weight, which share the loads of right. Images are summed in blocks, for the rounding error's sake.
  template <int kRows>
  static SENET_INLINE void outer_rows(const A* left, int64_t left_stride, const A* right, int64_t right_stride, W* weight,
                                      int64_t B, int64_t N) {
    constexpr int64_t kBlock = 64;
    map_vectors<A>(N, [&](int64_t n, auto load, auto store) {
      Vec<A> total[kRows];
      for (auto& v : total) v = broadcast(A(0));
      for (int64_t first = 0; first < B; first += kBlock) {
        const int64_t last = first + kBlock < B ? first + kBlock : B;
        Vec<A> acc[kRows];
        for (auto& v : acc) v = broadcast(A(0));
        for (int64_t b = first; b < last; ++b) {
          const Vec<A> v = load(right + b * right_stride + n);
          for (int m = 0; m < kRows; ++m) acc[m] = acc[m] + broadcast(left[b * left_stride + m]) * v;
        }
        for (int m = 0; m < kRows; ++m) total[m] = total[m] + acc[m];
      }
      for (int m = 0; m < kRows; ++m) store(total[m], weight + m * N + n);
    });
  }

  static void outer(const A* left, int64_t left_stride, const A* right, int64_t right_stride, void* weight_, void* bias_,
                    int64_t B, int64_t N, int64_t begin, int64_t end) {
    W *weight = static_cast<W*>(weight_), *bias = static_cast<W*>(bias_);
    if (weight != nullptr) {
      int64_t m = begin;
      for (; m + 4 <= end; m += 4) outer_rows<4>(left + m, left_stride, right, right_stride, weight + m * N, B, N);
      for (; m < end; ++m) outer_rows<1>(left + m, left_stride, right, right_stride, weight + m * N, B, N);
    }
    if (bias != nullptr) {
      for (int64_t m = begin; m < end; ++m) {
        double total = 0;
        for (int64_t b = 0; b < B; ++b) total += left[b * left_stride + m];
        const A sum = A(total);
        write(&sum, bias + m, 1);
      }
    }
  }

  static A read_one(const W* p) { return load<A>(p, 1).part[0][0]; }

  static void read(const void* weight, A* out, int64_t n) {
    const W* w = static_cast<const W*>(weight);
    map_vectors<A>(n, [&](int64_t i, auto load, auto store) { store(load(w + i), out + i); });
  }
  static void write(const A* in, void* weight, int64_t n) {
    W* w = static_cast<W*>(weight);
    map_vectors<A>(n, [&](int64_t i, auto load, auto store) { store(load(in + i), w + i); });
  }

  static constexpr WeightKernels<A> table() { return {linear, linear_transposed, outer, read, write}; }
};
