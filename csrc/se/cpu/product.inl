// Matrix products on tiles in the caches, and what stands around them in a 1x1 convolution with a gate. Part of kernels.inl.
//
// The sum over k of left[m][k] * right[k][n]: rows m of `left` lie somewhere with a stride, `right` is packed in vectors of 16
// columns, [n / 16][k][16], each vector a stream of its own. A sum is one chain over k, whatever the tile: the same bits for
// every cut of the work, and, of floats, on every ISA that has fused multiply-adds.

// A tile of sums is so many rows of kN native vectors: as many as the registers hold, enough to hide the multiplication's
// latency.
constexpr int kTileColumns = SENET_VECTOR_BYTES == 32 ? 2 : 4;
template <int kN>
constexpr int tile_rows() {
#if SENET_VECTOR_BYTES == 32
  return kN == 2 ? 6 : 12;
#elif SENET_VECTOR_BYTES == 64 || defined(__aarch64__)
  return kN == 4 ? 6 : kN == 3 ? 8 : 12;
#else
  return 2;
#endif
}

// What is multiplied: floats, one k a step. kGroup: neighbours in k that lie side by side in a vector.
struct Floats {
  using Item = float;
  static constexpr Dtype dtype = Dtype::f32;
  static constexpr int kGroup = 1, kPerStep = 1;

  static SENET_INLINE Float spread(const float* left) { return *left - Float{}; }
  static SENET_INLINE Float step(Float left, Float right, Float sum) { return fma_part(left, right, sum); }
};

#if defined(SENET_BF16_CONVERSION)
// Or pairs of bfloat16, two k a step: `right` is [n / 16][k / 2][16][2].
struct Pairs {
  using Item = bf16;
  static constexpr Dtype dtype = Dtype::bf16;
  static constexpr int kGroup = 2, kPerStep = 2;

  static SENET_INLINE Float spread(const bf16* left) {
    int pair;
    __builtin_memcpy(&pair, left, sizeof pair);
    __m512i spread = _mm512_set1_epi32(pair);
#if defined(__clang__)  // version 16 does not come to an end with a product of what it knows to be spread
    __asm__("" : "+v"(spread));
#endif
    return (Float)spread;
  }
  static SENET_INLINE Float step(Float left, Float right, Float sum) {
    return (Float)_mm512_dpbf16_ps((__m512)sum, (__m512bh)left, (__m512bh)right);
  }
};
#endif

// Sums in vector registers.
template <class U>
struct Registers : U {
  using Item = typename U::Item;
  static constexpr int kLanes = Vec<float>::kLanes, kParts = Vec<float>::kParts, kWidth = Vec<float>::kWidth;

  template <int kM, int kN>
  static SENET_INLINE void tile(int64_t steps, const Item* left, int64_t left_stride, const Item* right, float* out,
                                int64_t out_stride) {
    Float sum[kM][kN];
    for (auto& row : sum) {
      for (auto& part : row) part = Float{};
    }
    constexpr int kItems = kWidth * U::kGroup;
    const int64_t panel = steps * kParts * kItems;
    for (int64_t k = 0; k < steps; ++k, right += kParts * kItems) {
      Float v[kN];
      // A loop that gcc unrolls by itself it unrolls too late: what it indexes has its place in memory by then.
#pragma GCC unroll 4
      for (int n = 0; n < kN; ++n) {
        __builtin_memcpy(&v[n], right + n / kParts * panel + n % kParts * kItems, sizeof v[n]);
      }
      for (int m = 0; m < kM; ++m) {
        const Float factor = U::spread(left + m * left_stride + k * U::kPerStep);
        for (int n = 0; n < kN; ++n) sum[m][n] = U::step(factor, v[n], sum[m][n]);
      }
    }
#pragma GCC unroll 16
    for (int m = 0; m < kM; ++m) {
#pragma GCC unroll 4
      for (int n = 0; n < kN; ++n) __builtin_memcpy(out + m * out_stride + n * kWidth, &sum[m][n], sizeof sum[m][n]);
    }
  }

  template <int kM, int kN>
  static SENET_INLINE int64_t tiles(int64_t m, int64_t M, int64_t steps, const Item* left, int64_t left_stride,
                                    const Item* right, float* out, int64_t out_stride) {
    for (; m + kM <= M; m += kM) {
      tile<kM, kN>(steps, left + m * left_stride, left_stride, right, out + m * out_stride, out_stride);
    }
    return m;
  }
  template <int kN>
  static void columns(int64_t M, int64_t steps, const Item* left, int64_t left_stride, const Item* right, float* out,
                      int64_t out_stride) {
    int64_t m = tiles<tile_rows<kN>(), kN>(0, M, steps, left, left_stride, right, out, out_stride);
    if constexpr (tile_rows<kN>() > 4) m = tiles<4, kN>(m, M, steps, left, left_stride, right, out, out_stride);
    if constexpr (tile_rows<kN>() > 2) m = tiles<2, kN>(m, M, steps, left, left_stride, right, out, out_stride);
    tiles<1, kN>(m, M, steps, left, left_stride, right, out, out_stride);
  }

  static void multiply(int64_t M, int64_t N, int64_t steps, const Item* left, int64_t left_stride, const Item* right,
                       float* out, int64_t out_stride) {
    for (int64_t rest = (N + kWidth - 1) / kWidth; rest > 0;) {
      int64_t now = rest < kTileColumns ? rest : kTileColumns;
      if constexpr (kParts == 1) now = rest == 5 ? 3 : now;  // and then 2: a tile of one vector is slow
      auto* made = now == 1 ? columns<1> : columns<2>;
      if constexpr (kTileColumns == 4) made = now == 4 ? columns<4> : now == 3 ? columns<3> : made;
      made(M, steps, left, left_stride, right, out, out_stride);
      rest -= now;
      right += now / kParts * steps * kLanes * U::kGroup;
      out += now * kWidth;
    }
  }
};

#if defined(SENET_BF16_CONVERSION)
// Or in AMX's tiles of at most 16 rows, 32 k a step, with `right` as for Pairs. Tiles 0 to 3 are the sums, two by two, 4 and 5
// of `left`, 6 and 7 of `right`: four sums at a time hide the latency of a multiplication.
struct Tiles {
  using Item = bf16;
  static constexpr Dtype dtype = Dtype::bf16;
  static constexpr int kGroup = 2, kPerStep = 32;

  // Tiles below each other of so many rows; none of 0 rows is used.
  static SENET_INLINE void configure(int64_t first, int64_t second) {
    struct alignas(64) {
      unsigned char palette, start_row, reserved[14];
      unsigned short row_bytes[16];
      unsigned char rows[16];
    } shape = {};
    shape.palette = 1;
    for (int tile = 0; tile < 8; ++tile) {
      const bool lower = tile == 2 || tile == 3 || tile == 5;
      const int64_t rows = tile >= 6 ? 16 : lower ? second : first;
      shape.rows[tile] = static_cast<unsigned char>(rows);
      shape.row_bytes[tile] = rows > 0 ? 64 : 0;
    }
    // The compiler is not told what the loads of tiles read: all of memory is to be written by now.
    __asm__ volatile("ldtilecfg %0" : : "m"(shape) : "memory");
  }

  template <int kM, int kN>
  static SENET_INLINE void tile(int64_t steps, const bf16* left, int64_t left_stride, const bf16* right, float* out,
                                int64_t out_stride) {
    const int64_t panel = steps * 16 * kPerStep, row_bytes = left_stride * 2, out_bytes = out_stride * 4;
    _tile_zero(0);
    if constexpr (kN == 2) _tile_zero(1);
    if constexpr (kM == 2) _tile_zero(2);
    if constexpr (kM == 2 && kN == 2) _tile_zero(3);
    for (int64_t k = 0; k < steps; ++k, left += kPerStep, right += 16 * kPerStep) {
      _tile_loadd(6, right, 64);
      _tile_loadd(4, left, row_bytes);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (kN == 2) {
        _tile_loadd(7, right + panel, 64);
        _tile_dpbf16ps(1, 4, 7);
      }
      if constexpr (kM == 2) {
        _tile_loadd(5, left + 16 * left_stride, row_bytes);
        _tile_dpbf16ps(2, 5, 6);
        if constexpr (kN == 2) _tile_dpbf16ps(3, 5, 7);
      }
    }
    _tile_stored(0, out, out_bytes);
    if constexpr (kN == 2) _tile_stored(1, out + 16, out_bytes);
    if constexpr (kM == 2) _tile_stored(2, out + 16 * out_stride, out_bytes);
    if constexpr (kM == 2 && kN == 2) _tile_stored(3, out + 16 * out_stride + 16, out_bytes);
  }

  template <int kM>
  static SENET_INLINE void columns(int64_t vectors, int64_t steps, const bf16* left, int64_t left_stride, const bf16* right,
                                   float* out, int64_t out_stride) {
    int64_t n = 0;
    for (; n + 2 <= vectors; n += 2) {
      tile<kM, 2>(steps, left, left_stride, right + n * steps * 16 * kPerStep, out + n * 16, out_stride);
    }
    if (n < vectors) tile<kM, 1>(steps, left, left_stride, right + n * steps * 16 * kPerStep, out + n * 16, out_stride);
  }

  static SENET_INLINE void multiply(int64_t M, int64_t N, int64_t steps, const bf16* left, int64_t left_stride,
                                    const bf16* right, float* out, int64_t out_stride) {
    int64_t configured = 0;
    for (; M > 0; M -= 32, left += 32 * left_stride, out += 32 * out_stride) {
      const int64_t rows = M < 32 ? M : 32;
      if (rows != configured) configure(rows < 16 ? rows : 16, rows < 16 ? 0 : rows - 16);
      configured = rows;
      (rows > 16 ? columns<2> : columns<1>)((N + 15) / 16, steps, left, left_stride, right, out, out_stride);
    }
    _tile_release();  // the thread's state is small again where it is saved; oneDNN configures its tiles itself
  }
};
#endif

// T: the type of x and y; U: what is multiplied, and how
template <class T, class U>
struct Product {
  using Item = typename U::Item;
  static constexpr int kLanes = Vec<float>::kLanes;
  static constexpr int64_t kVectorItems = kLanes * U::kGroup;

  // Of K and the zeros up to a whole step.
  static SENET_INLINE int64_t groups(int64_t K) { return (K + U::kPerStep - 1) / U::kPerStep * (U::kPerStep / U::kGroup); }

  static void multiply(int64_t M, int64_t N, int64_t steps, const void* left, int64_t left_stride, const void* right,
                       float* out, int64_t out_stride) {
    U::multiply(M, N, steps, static_cast<const Item*>(left), left_stride, static_cast<const Item*>(right), out, out_stride);
  }

  // out[m] = row m of x, times scale unless that is null, as items; zeros up to a whole step behind K
  static void rows(const void* x_, int64_t x_stride, int64_t M, int64_t K, const float* scale, void* out_) {
    const T* x = static_cast<const T*>(x_);
    Item* out = static_cast<Item*>(out_);
    const int64_t whole = groups(K) * U::kGroup;
    for (int64_t m = 0; m < M; ++m) {
      const T* from = x + m * x_stride;
      Item* to = out + m * whole;
      map_vectors<float>(K, [&](int64_t k, auto load, auto store) {
        store(scale ? load(from + k) * load(scale + k) : load(from + k), to + k);
      });
      for (int64_t k = K; k < whole; ++k) to[k] = {};
    }
  }

  // x [K][stride], of which n columns, packed as `right`, times scale[k] unless that is null; zeros in the vectors' free lanes
  static void pack(const void* x_, int64_t x_stride, int64_t n, int64_t K, const float* scale, void* out_) {
    const T* x = static_cast<const T*>(x_);
    Item* out = static_cast<Item*>(out_);
    const int64_t all = groups(K);
    for (int64_t k = 0; k < all; ++k) {
      for (int64_t first = 0; first < n; first += kLanes) {
        const int64_t rest = n - first;
        const auto row = [&](int64_t at) {
          if (at >= K) return broadcast(0.0f);
          const T* from = x + at * x_stride + first;
          const Vec<float> v = rest < kLanes ? load<float>(from, rest) : load<float>(from);
          return scale ? v * broadcast(scale[at]) : v;
        };
        Item* to = out + (first / kLanes * all + k) * kVectorItems;
        if constexpr (U::kGroup == 1) {
          store(row(k), to);
        } else {
          store_pairs(row(2 * k), row(2 * k + 1), to);
        }
      }
    }
  }
  static SENET_INLINE void store_pairs(const Vec<float>& even, const Vec<float>& odd, Item* to) {
    const bf16* as_bf16 = nullptr;
    for (int i = 0; i < Vec<float>::kParts; ++i) {
      const Bits pairs =
          widen(::senet::SENET_ISA::pack(even.part[i], as_bf16)) | widen(::senet::SENET_ISA::pack(odd.part[i], as_bf16)) << 16;
      __builtin_memcpy(reinterpret_cast<char*>(to) + i * SENET_VECTOR_BYTES, &pairs, sizeof pairs);
    }
  }

  static void scale_packed(const void* right_, int64_t vectors, int64_t K, const float* scale, void* scaled_) {
    const Item* right = static_cast<const Item*>(right_);
    Item* scaled = static_cast<Item*>(scaled_);
    const int64_t all = groups(K);
    const auto factor = [&](int64_t k) { return broadcast(k < K ? scale[k] : 0.0f); };
    for (int64_t n = 0; n < vectors; ++n) {
      for (int64_t k = 0; k < all; ++k, right += kVectorItems, scaled += kVectorItems) {
        if constexpr (U::kGroup == 1) {
          store(load<float>(right) * factor(k), scaled);
        } else {
          const Two<float> pairs = EvenOdd::load_two<float>(right);
          store_pairs(pairs.first * factor(2 * k), pairs.second * factor(2 * k + 1), scaled);
        }
      }
    }
  }

  // y[m][n] = activation(sums[m][n] * scale + shift + residual[m][n]), with numbers for each row or for each column
  static void finish(float* sums, int64_t sums_stride, int64_t M, int64_t N, const float* scale, const float* shift,
                     bool by_rows, const void* residual, const Activation& activation, void* y, int64_t y_stride, bool stream) {
    const auto rows = by_rows ? finish_by<true> : finish_by<false>;
    // lines that would be written in part go through the cache
    constexpr int64_t kLineItems = 64 / int64_t(sizeof(T));
    stream = stream && reinterpret_cast<std::uintptr_t>(y) % 64 == 0 && y_stride % kLineItems == 0 && N % kLineItems == 0;
    rows(sums, sums_stride, M, N, scale, shift, residual, activation, y, y_stride, stream);
    if (stream) fence();
  }
  template <bool kRows>
  static void finish_by(float* sums_, int64_t sums_stride, int64_t M, int64_t N, const float* scale, const float* shift,
                        const void* residual_, const Activation& activation, void* y_, int64_t y_stride, bool streamed) {
    const bool relu = activation.kind == ActivationKind::relu, arrays = !relu && !activation.is_identity();
    for (int64_t m = 0; m < M; ++m) {
      float* sums = sums_ + m * sums_stride;
      const T* residual = residual_ ? static_cast<const T*>(residual_) + m * y_stride : nullptr;
      T* y = static_cast<T*>(y_) + m * y_stride;
      const auto value = [&](int64_t n, auto load) {
        const Vec<float> a = scale_at<float, !kRows>(kRows ? scale + m : scale, n, load);
        const Vec<float> b = scale_at<float, !kRows>(kRows ? shift + m : shift, n, load);
        Vec<float> v = fma(load(sums + n), a, b);
        if (residual) v = v + load(residual + n);
        return relu ? positive(v) : v;
      };
      const auto put = [&](const Vec<float>& v, int64_t n, auto store) {
        if (arrays) return store(v, sums + n);
        if (streamed) return stream(v, y + n);
        store(v, y + n);
      };
      // What is behind the whole vectors is a vector that overlaps the last of them, computed first: y may be the residual.
      const int64_t rest = N > kLanes ? N % kLanes : 0;
      Vec<float> last;
      if (rest > 0) last = value(N - kLanes, [](auto* p) { return load<float>(p); });
      for_vectors<float>(N - rest, [&](int64_t n, auto load, auto store) { put(value(n, load), n, store); });
      if (rest > 0) put(last, N - kLanes, [](const Vec<float>& v, auto* p) { store(v, p); });
      if (!arrays) continue;
      activation_value(activation, sums, sums, N);
      map_vectors<float>(N, [&](int64_t n, auto load, auto store) { store(load(sums + n), y + n); });
    }
  }

  static constexpr ProductKernels table() { return {U::dtype, U::kPerStep, multiply, rows, pack, scale_packed, finish}; }
};
