// Kernels over the two layers' weights. Part of kernels.inl.

// Tiles of sums in registers: enough in flight to hide an addition's latency, few enough for the register file. Each sum has
// its own lanes and order, whatever the tile.
constexpr int kTileB = SENET_VECTOR_BYTES == 64 ? 4 : SENET_VECTOR_BYTES == 32 ? 2 : 1;
constexpr int kTileN = SENET_VECTOR_BYTES == 64 ? 4 : 2;
constexpr int kTileN1 = SENET_VECTOR_BYTES == 64 ? 16 : SENET_VECTOR_BYTES == 32 ? 4 : 2;  // for a single image

template <class A, class W>
struct Weights {
  // out[b, n] = in[b] . weight[n] + bias[n] for kB x kN of them
  template <int kB, int kN>
  static SENET_INLINE void dot_tile(const A* in, int64_t in_stride, const W* weight, const A* bias, A* out, int64_t out_stride,
                                    int64_t M) {
    constexpr int kLanes = Vec<A>::kLanes;
    Vec<A> acc[kB * kN];
    for (auto& v : acc) v = broadcast(A(0));
    int64_t m = 0;
    for (; m + kLanes <= M; m += kLanes) {
      Vec<A> w[kN];
      for (int n = 0; n < kN; ++n) w[n] = load<A>(weight + n * M + m);
      for (int b = 0; b < kB; ++b) {
        const Vec<A> v = load<A>(in + b * in_stride + m);
        for (int n = 0; n < kN; ++n) acc[b * kN + n] = fma(v, w[n], acc[b * kN + n]);
      }
    }
    if (m < M) {
      for (int b = 0; b < kB; ++b) {
        for (int n = 0; n < kN; ++n) {
          const auto term = [&](int64_t i, auto load) { return load(in + b * in_stride + i) * load(weight + n * M + i); };
          acc[b * kN + n] = add_rest<A>(acc[b * kN + n], m, M, term);
        }
      }
    }
    A sums[kB * kN];
    sum_each<A, kB * kN>(acc, sums);
    for (int b = 0; b < kB; ++b) {
      for (int n = 0; n < kN; ++n) out[b * out_stride + n] = sums[b * kN + n] + bias[n];
    }
  }

  template <int kB, int kN>
  static SENET_INLINE void dot_rows(const A* in, int64_t in_stride, const W* weight, const A* bias, A* out, int64_t out_stride,
                                    int64_t M, int64_t rows) {
    int64_t n = 0;
    for (; n + kN <= rows; n += kN) dot_tile<kB, kN>(in, in_stride, weight + n * M, bias + n, out + n, out_stride, M);
    for (; n < rows; ++n) dot_tile<kB, 1>(in, in_stride, weight + n * M, bias + n, out + n, out_stride, M);
  }

  static void linear(const A* in, int64_t in_stride, const void* weight_, const void* bias_, A* out, int64_t out_stride,
                     int64_t B, int64_t M, int64_t begin, int64_t end) {
    const W *weight = static_cast<const W*>(weight_), *bias = static_cast<const W*>(bias_);
    constexpr int64_t kBlock = 16;  // rows that stay in L1 while all images pass
    for (int64_t n = begin; n < end; n += kBlock) {
      const int64_t rows = end - n < kBlock ? end - n : kBlock;
      A offset[kBlock] = {};
      if (bias) read(bias + n, offset, rows);
      int64_t b = 0;
      if constexpr (kTileB > 1) {
        for (; b + kTileB <= B; b += kTileB) {
          dot_rows<kTileB, kTileN>(in + b * in_stride, in_stride, weight + n * M, offset, out + b * out_stride + n, out_stride,
                                   M, rows);
        }
      }
      for (; b < B; ++b) {
        dot_rows<1, kTileN1>(in + b * in_stride, in_stride, weight + n * M, offset, out + b * out_stride + n, out_stride, M,
                             rows);
      }
    }
  }

  // out[b, n] for kB images and kN vectors of columns
  template <int kB, int kN>
  static SENET_INLINE void transposed_tile(const A* in, int64_t in_stride, const W* weight, A* out, int64_t out_stride,
                                           int64_t M, int64_t N) {
    constexpr int kLanes = Vec<A>::kLanes;
    Vec<A> acc[kB][kN];
    for (auto& row : acc) {
      for (auto& v : row) v = broadcast(A(0));
    }
    for (int64_t m = 0; m < M; ++m) {
      Vec<A> w[kN];
      for (int n = 0; n < kN; ++n) w[n] = load<A>(weight + m * N + n * kLanes);
      for (int b = 0; b < kB; ++b) {
        const Vec<A> v = broadcast(in[b * in_stride + m]);
        for (int n = 0; n < kN; ++n) acc[b][n] = fma(v, w[n], acc[b][n]);
      }
    }
    for (int b = 0; b < kB; ++b) {
      for (int n = 0; n < kN; ++n) store(acc[b][n], out + b * out_stride + n * kLanes);
    }
  }
  template <int kN>
  static SENET_INLINE void transposed_columns(const A* in, int64_t in_stride, const W* weight, A* out, int64_t out_stride,
                                              int64_t B, int64_t M, int64_t N) {
    int64_t b = 0;
    for (; b + kTileB <= B; b += kTileB) {
      transposed_tile<kTileB, kN>(in + b * in_stride, in_stride, weight, out + b * out_stride, out_stride, M, N);
    }
    for (; b < B; ++b) transposed_tile<1, kN>(in + b * in_stride, in_stride, weight, out + b * out_stride, out_stride, M, N);
  }

  static void linear_transposed(const A* in, int64_t in_stride, const void* weight_, A* out, int64_t out_stride, int64_t B,
                                int64_t M, int64_t N, int64_t begin, int64_t end) {
    constexpr int kLanes = Vec<A>::kLanes;
    const W* weight = static_cast<const W*>(weight_);
    int64_t n = begin;
    for (; n + kTileN * kLanes <= end; n += kTileN * kLanes) {
      transposed_columns<kTileN>(in, in_stride, weight + n, out + n, out_stride, B, M, N);
    }
    for (; n + kLanes <= end; n += kLanes) transposed_columns<1>(in, in_stride, weight + n, out + n, out_stride, B, M, N);
    if (n == end) return;
    if (end - begin >= kLanes) {  // the last columns once more, as whole vectors
      n = end - kLanes;
      return transposed_columns<1>(in, in_stride, weight + n, out + n, out_stride, B, M, N);
    }
    const int64_t rest = end - n;
    for (int64_t b = 0; b < B; ++b) {
      Vec<A> acc = broadcast(A(0));
      for (int64_t m = 0; m < M; ++m) acc = fma(broadcast(in[b * in_stride + m]), load<A>(weight + m * N + n, rest), acc);
      store(acc, out + b * out_stride + n, rest);
    }
  }

  // weight[m, n] for kM rows and kN vectors of columns from n on. Images are summed in blocks, for the rounding error's sake.
  template <int kM, int kN, class Load, class Store>
  static SENET_INLINE void outer_tile(const A* left, int64_t left_stride, const A* right, int64_t right_stride, W* weight,
                                      int64_t B, int64_t N, Load load, Store store) {
    constexpr int kLanes = Vec<A>::kLanes;
    constexpr int64_t kBlock = 64;
    Vec<A> total[kM][kN];
    for (auto& row : total) {
      for (auto& v : row) v = broadcast(A(0));
    }
    for (int64_t first = 0; first < B; first += kBlock) {
      const int64_t last = first + kBlock < B ? first + kBlock : B;
      Vec<A> acc[kM][kN];
      for (auto& row : acc) {
        for (auto& v : row) v = broadcast(A(0));
      }
      for (int64_t b = first; b < last; ++b) {
        Vec<A> v[kN];
        for (int n = 0; n < kN; ++n) v[n] = load(right + b * right_stride + n * kLanes);
        for (int m = 0; m < kM; ++m) {
          const Vec<A> factor = broadcast(left[b * left_stride + m]);
          for (int n = 0; n < kN; ++n) acc[m][n] = fma(factor, v[n], acc[m][n]);
        }
      }
      for (int m = 0; m < kM; ++m) {
        for (int n = 0; n < kN; ++n) total[m][n] = total[m][n] + acc[m][n];
      }
    }
    for (int m = 0; m < kM; ++m) {
      for (int n = 0; n < kN; ++n) store(total[m][n], weight + m * N + n * kLanes);
    }
  }
  template <int kM>
  static SENET_INLINE void outer_rows(const A* left, int64_t left_stride, const A* right, int64_t right_stride, W* weight,
                                      int64_t B, int64_t N) {
    constexpr int kColumns = kTileN * Vec<A>::kLanes;
    int64_t n = 0;
    for (; n + kColumns <= N; n += kColumns) {
      outer_tile<kM, kTileN>(left, left_stride, right + n, right_stride, weight + n, B, N, whole_load, whole_store);
    }
    map_vectors<A>(N - n, [&](int64_t i, auto load, auto store) {
      outer_tile<kM, 1>(left, left_stride, right + n + i, right_stride, weight + n + i, B, N, load, store);
    });
  }

  static void outer(const A* left, int64_t left_stride, const A* right, int64_t right_stride, void* weight_, void* bias_,
                    int64_t B, int64_t N, int64_t begin, int64_t end) {
    W *weight = static_cast<W*>(weight_), *bias = static_cast<W*>(bias_);
    if (weight != nullptr) {
      int64_t m = begin;
      for (; m + kTileB <= end; m += kTileB) {
        outer_rows<kTileB>(left + m, left_stride, right, right_stride, weight + m * N, B, N);
      }
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

  static constexpr auto whole_load = [](auto* p) { return load<A>(p); };
  static constexpr auto whole_store = [](const Vec<A>& v, auto* p) { store(v, p); };

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
