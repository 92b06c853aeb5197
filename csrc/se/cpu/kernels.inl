// The kernels, written once. Each ISA's file includes this inside its target region with SENET_ISA (namespace),
// SENET_ISA_NAME and SENET_VECTOR_BYTES defined. Everything is in an anonymous namespace and nothing of the standard
// library's templates is used: a copy compiled for a wide ISA must never be linked into code that runs without it.
#include <math.h>

namespace senet::SENET_ISA {
namespace {

#include "se/cpu/math.inl"
#include "se/cpu/simd.inl"

using std::int64_t;

// ---- activations over small arrays, and in chunks over the data ----

template <class A>
void activation_value(const Activation& activation, const A* z_, A* out, int64_t n) {
  A p[4];
  for (int i = 0; i < 4; ++i) p[i] = A(activation.arguments[i]);
  switch (activation.kind) {
#define SENET_CASE(name, arguments, optional, value, slope) \
  case ActivationKind::name:                                \
    for (int64_t i = 0; i < n; ++i) {                       \
      const A z = z_[i];                                    \
      out[i] = A(value);                                    \
    }                                                       \
    break;
    SENET_ACTIVATIONS(SENET_CASE)
#undef SENET_CASE
  }
}

template <class A>
void activation_grad(const Activation& activation, const A* z_, const A* grad, A* out, int64_t n) {
  A p[4];
  for (int i = 0; i < 4; ++i) p[i] = A(activation.arguments[i]);
  switch (activation.kind) {
#define SENET_CASE(name, arguments, optional, value, slope) \
  case ActivationKind::name:                                \
    for (int64_t i = 0; i < n; ++i) {                       \
      [[maybe_unused]] const A z = z_[i];                   \
      out[i] = grad[i] * A(slope);                          \
    }                                                       \
    break;
    SENET_ACTIVATIONS(SENET_CASE)
#undef SENET_CASE
  }
}

constexpr int64_t kChunk = 256;  // elements that pass through a float buffer in L1 where an activation follows

// ---- data kernels: a channel's elements share one scale; a row has one for each of its elements ----

template <class A, bool kRow>
SENET_INLINE Vec<A> scale_at(const A* scale, int64_t i, auto load) {
  if constexpr (kRow) {
    return load(scale + i);
  } else {
    return broadcast(*scale);
  }
}

template <class A, class T, bool kRow>
SENET_INLINE void scale_segment(const T* x, const A* scale, const T* residual, const Activation& activation, T* y, int64_t n) {
  if (residual == nullptr && activation.is_identity()) {
    map_vectors<A>(n, [&](int64_t i, auto load, auto store) { store(load(x + i) * scale_at<A, kRow>(scale, i, load), y + i); });
    return;
  }
  for (int64_t from = 0; from < n; from += kChunk) {
    const int64_t count = n - from < kChunk ? n - from : kChunk;
    A v[kChunk];
    map_vectors<A>(count, [&](int64_t i, auto load, auto store) {
      Vec<A> scaled = load(x + from + i) * scale_at<A, kRow>(scale, from + i, load);
      if (residual != nullptr) scaled = scaled + load(residual + from + i);
      store(scaled, v + i);
    });
    activation_value(activation, v, v, count);
    map_vectors<A>(count, [&](int64_t i, auto load, auto store) { store(load(v + i), y + from + i); });
  }
}

// grad_v of up to kChunk elements, as A
template <class A, class T, bool kRow>
SENET_INLINE void grad_chunk(const T* grad_y, const T* x, const A* scale, const T* residual, const Activation& activation,
                             T* grad_v, A* v, int64_t n) {
  A dy[kChunk];
  map_vectors<A>(n, [&](int64_t i, auto load, auto store) {
    Vec<A> scaled = load(x + i) * scale_at<A, kRow>(scale, i, load);
    if (residual != nullptr) scaled = scaled + load(residual + i);
    store(scaled, v + i);
    store(load(grad_y + i), dy + i);
  });
  activation_grad(activation, v, dy, v, n);
  map_vectors<A>(n, [&](int64_t i, auto load, auto store) { store(load(v + i), grad_v + i); });
}

// The sum over a channel: four accumulators, so that additions overlap, joined in a fixed order.
template <class A, class Term>
SENET_INLINE A sum_terms(int64_t n, Term term) {
  constexpr int kLanes = Vec<A>::kLanes;
  Vec<A> a = broadcast(A(0)), b = a, c = a, d = a;
  const auto whole = [](auto* p) { return load<A>(p); };
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    a = a + term(i, whole);
    b = b + term(i + kLanes, whole);
    c = c + term(i + 2 * kLanes, whole);
    d = d + term(i + 3 * kLanes, whole);
  }
  for (; i + kLanes <= n; i += kLanes) a = a + term(i, whole);
  b = add_rest<A>(b, i, n, term);
  return sum((a + b) + (c + d));
}

// sums[k] += terms of rows [begin, end); rows are added four at a time, so that sums pass through L1 once for four.
template <class A, class Term>
SENET_INLINE void sum_rows(int64_t begin, int64_t end, int64_t K, A* sums, Term term) {
  int64_t o = begin;
  for (; o + 4 <= end; o += 4) {
    for_vectors<A>(K, [&](int64_t k, auto load, auto store) {
      const Vec<A> pair = term(o, k, load) + term(o + 1, k, load);
      store(load(sums + k) + (pair + (term(o + 2, k, load) + term(o + 3, k, load))), sums + k);
    });
  }
  for (; o < end; ++o) {
    for_vectors<A>(K, [&](int64_t k, auto load, auto store) { store(load(sums + k) + term(o, k, load), sums + k); });
  }
}

template <class A, class T>
struct Data {
  static void squeeze(const Image& image, const void* x_, int64_t begin, int64_t end, A* sums) {
    const T* x = static_cast<const T*>(x_);
    const auto [O, K, I] = image;
    if (image.by_rows()) {
      for (int64_t k = 0; k < K; ++k) sums[k] = 0;
      sum_rows(begin, end, K, sums, [&](int64_t o, int64_t k, auto load) { return load(x + o * K + k); });
      return;
    }
    for (int64_t k = begin; k < end; ++k) {
      A total = 0;
      for (int64_t o = 0; o < O; ++o) {
        const T* segment = x + (o * K + k) * I;
        total += sum_terms<A>(I, [&](int64_t i, auto load) { return load(segment + i); });
      }
      sums[k] = total;
    }
  }

  static void scale(const Image& image, const void* x_, const A* scale, const void* residual_, const Activation& activation,
                    void* y_, int64_t begin, int64_t end) {
    const T *x = static_cast<const T*>(x_), *residual = static_cast<const T*>(residual_);
    T* y = static_cast<T*>(y_);
    for_segments(image, begin, end, [&](int64_t k, int64_t at, int64_t n, auto row) {
      scale_segment<A, T, row.value>(x + at, scale + k, residual ? residual + at : nullptr, activation, y + at, n);
    });
  }

  static void grad_scale(const Image& image, const void* grad_y_, const void* x_, const A* scale, const void* residual_,
                         const Activation& activation, void* grad_v_, int64_t begin, int64_t end, A* sums) {
    const T *dy = static_cast<const T*>(grad_y_), *x = static_cast<const T*>(x_), *residual = static_cast<const T*>(residual_);
    T* dv = static_cast<T*>(grad_v_);
    const int64_t K = image.K;
    if (image.by_rows()) {
      for (int64_t k = 0; k < K; ++k) sums[k] = 0;
    }
    if (activation.is_identity() && image.by_rows()) {
      sum_rows(begin, end, K, sums,
               [&](int64_t o, int64_t k, auto load) { return load(dy + o * K + k) * load(x + o * K + k); });
      return;
    }
    if (!image.by_rows()) {
      for (int64_t k = begin; k < end; ++k) sums[k] = 0;
    }
    for_segments(image, begin, end, [&](int64_t k, int64_t at, int64_t n, auto row) {
      const T *dy_at = dy + at, *x_at = x + at;
      if (activation.is_identity()) {
        sums[k] += sum_terms<A>(n, [&](int64_t i, auto load) { return load(dy_at + i) * load(x_at + i); });
        return;
      }
      for (int64_t from = 0; from < n; from += kChunk) {
        const int64_t count = n - from < kChunk ? n - from : kChunk;
        A v[kChunk];
        grad_chunk<A, T, row.value>(dy_at + from, x_at + from, row.value ? scale + from : scale + k,
                                    residual ? residual + at + from : nullptr, activation, dv + at + from, v, count);
        const auto term = [&](int64_t i, auto load) { return load(v + i) * load(x_at + from + i); };
        if constexpr (row.value) {
          for_vectors<A>(
              count, [&](int64_t i, auto load, auto store) { store(load(sums + from + i) + term(i, load), sums + from + i); });
        } else {
          sums[k] += sum_terms<A>(count, term);
        }
      }
    });
  }

  static void grad_x(const Image& image, const void* grad_v_, const A* scale, const A* shift, void* grad_x_, int64_t begin,
                     int64_t end) {
    const T* dv = static_cast<const T*>(grad_v_);
    T* dx = static_cast<T*>(grad_x_);
    for_segments(image, begin, end, [&](int64_t k, int64_t at, int64_t n, auto row) {
      map_vectors<A>(n, [&](int64_t i, auto load, auto store) {
        store(load(dv + at + i) * scale_at<A, row.value>(scale + k, i, load) + scale_at<A, row.value>(shift + k, i, load),
              dx + at + i);
      });
    });
  }

  static constexpr DataKernels<A> table() { return {squeeze, scale, grad_scale, grad_x}; }

 private:
  template <bool kValue>
  struct Constant {
    static constexpr bool value = kValue;
  };

  // body(k, at, n, row): a contiguous run of n elements from `at` on, beginning with channel k; row says whether the
  // channel changes along it.
  template <class Body>
  static SENET_INLINE void for_segments(const Image& image, int64_t begin, int64_t end, Body body) {
    const auto [O, K, I] = image;
    if (image.by_rows()) {
      for (int64_t o = begin; o < end; ++o) body(0, o * K, K, Constant<true>{});
      return;
    }
    for (int64_t o = 0; o < O; ++o) {
      for (int64_t k = begin; k < end; ++k) body(k, (o * K + k) * I, I, Constant<false>{});
    }
  }
};

// ---- weight kernels ----

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

  static void outer(const A* left, int64_t left_stride, const A* right, int64_t right_stride, void* weight_, void* bias_,
                    int64_t B, int64_t N, int64_t begin, int64_t end) {
    W *weight = static_cast<W*>(weight_), *bias = static_cast<W*>(bias_);
    for (int64_t m = begin; m < end; ++m) {
      if (weight != nullptr) {
        map_vectors<A>(N, [&](int64_t n, auto load, auto store) {
          Vec<A> acc = broadcast(A(0));
          for (int64_t b = 0; b < B; ++b) acc = acc + broadcast(left[b * left_stride + m]) * load(right + b * right_stride + n);
          store(acc, weight + m * N + n);
        });
      }
      if (bias != nullptr) {
        A total = 0;
        for (int64_t b = 0; b < B; ++b) total += left[b * left_stride + m];
        write(&total, bias + m, 1);
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

}  // namespace

static const Kernels kernels = {
    SENET_ISA_NAME,
    Data<float, float>::table(),
    Data<float, bf16>::table(),
    Data<float, f16>::table(),
    Data<double, double>::table(),
    Weights<float, float>::table(),
    Weights<float, bf16>::table(),
    Weights<float, f16>::table(),
    Weights<double, double>::table(),
    Weights<double, float>::table(),
    {activation_value<float>, activation_grad<float>},
    {activation_value<double>, activation_grad<double>},
};

}  // namespace senet::SENET_ISA
