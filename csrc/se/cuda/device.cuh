// What the kernels share: number types, 16-byte vectors, activations, sums over lanes, matrix rows.
#pragma once
#include "se/cuda/plan.h"
#include "se/cuda/port.cuh"

namespace senet::cuda {

// ---- numbers ----

SENET_DEVICE float widen(float v) { return v; }
SENET_DEVICE double widen(double v) { return v; }
template <class T>
SENET_DEVICE void narrow(T v, T& out) {
  out = v;
}
SENET_DEVICE void narrow(double v, float& out) { out = static_cast<float>(v); }
template <class T, class A>
SENET_DEVICE T narrowed(A v) {
  T out;
  narrow(v, out);
  return out;
}

constexpr float kNowhere = __builtin_nanf("");  // compares with nothing

// The type of sums.
template <class T>
struct SumOf {
  using type = float;
};
template <>
struct SumOf<double> {
  using type = double;
};
template <class T>
using Sum = typename SumOf<T>::type;

template <class T, int n = 16 / sizeof(T)>
struct alignas(n * sizeof(T)) Vector {
  static constexpr int kItems = n;
  T items[n];
};

template <class T>
SENET_DEVICE bool aligned(const T* p) {
  return reinterpret_cast<std::uintptr_t>(p) % 16 == 0;
}
// Elements before the first 16-byte boundary.
template <class T>
SENET_DEVICE int misaligned(const T* p) {
  return static_cast<int>((0 - reinterpret_cast<std::uintptr_t>(p)) % 16 / sizeof(T));
}

// n / divisor for n below 2^31, by a multiplication.
struct Divisor {
  unsigned factor, shift;
};
inline Divisor divisor(int d) {
  unsigned shift = 0;
  while ((1u << shift) < static_cast<unsigned>(d)) ++shift;
  const std::uint64_t factor = ((std::uint64_t{1} << 32) * ((std::uint64_t{1} << shift) - d)) / d + 1;
  return {static_cast<unsigned>(factor), shift};
}
SENET_DEVICE int divide(int n, Divisor d) {
  return static_cast<int>((__umulhi(static_cast<unsigned>(n), d.factor) + static_cast<unsigned>(n)) >> d.shift);
}

// ---- activations ----

SENET_DEVICE float exp(float x) { return ::expf(x); }
SENET_DEVICE double exp(double x) { return ::exp(x); }
SENET_DEVICE float tanh(float x) { return ::tanhf(x); }
SENET_DEVICE double tanh(double x) { return ::tanh(x); }
SENET_DEVICE float erf(float x) { return ::erff(x); }
SENET_DEVICE double erf(double x) { return ::erf(x); }

#define SENET_FORMULA SENET_DEVICE
#include "se/formulas.inl"
#undef SENET_FORMULA

// A call, not inlined: once for the hidden channels and gates of a tile, and for each element only behind or before a scale
// whose activation is no clamp.
template <class A>
SENET_DEVICE_CALL A activate(const Activation& activation, A z) {
  const A p[4] = {A(activation.arguments[0]), A(activation.arguments[1]), A(activation.arguments[2]),
                  A(activation.arguments[3])};
  switch (activation.kind) {
#define SENET_CASE(name, arguments, optional, value, gradient) \
  case ActivationKind::name:                                   \
    return A(value);
    SENET_ACTIVATIONS(SENET_CASE)
#undef SENET_CASE
  }
  return z;
}

// The gradient of z from g, that of the value.
template <class A>
SENET_DEVICE_CALL A activate_grad(const Activation& activation, A z, A g) {
  [[maybe_unused]] const A p[4] = {A(activation.arguments[0]), A(activation.arguments[1]), A(activation.arguments[2]),
                                   A(activation.arguments[3])};
  switch (activation.kind) {
#define SENET_CASE(name, arguments, optional, value, gradient) \
  case ActivationKind::name:                                   \
    return A(gradient);
    SENET_ACTIVATIONS(SENET_CASE)
#undef SENET_CASE
  }
  return g;
}

// ---- sums ----

// Of `lanes` neighbouring lanes, a power of two; the whole warp calls it, and every lane has its group's sum.
template <class A>
SENET_DEVICE A sum_lanes(A v, int lanes) {
  for (int offset = lanes >> 1; offset > 0; offset >>= 1) v += __shfl_xor_sync(0xffffffffu, v, offset);
  return v;
}

// Vectors of `count` images, `stride` apart.
template <class A>
struct Vectors {
  const A* in;
  int stride, count;
};

// out(row, i, sum over m < M of weight[row * stride + m] * in of image i [m]) on one lane, for the rows below `rows` and each
// image, of which there are kImages at the most. A weight is read once for all of them. The whole block calls it.
template <int kImages, class W, class A, class Out>
SENET_DEVICE void multiply_rows(const W* weight, std::int64_t stride, int rows, int M, const Vectors<A>& vectors_in,
                                const Out& out) {
  constexpr int kItems = Vector<W>::kItems, kAtOnce = Vector<A>::kItems, kRows = kImages > 1 ? 4 : 8;  // as registers allow
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const bool vectors =
      aligned(weight) && stride % kItems == 0 && M % kItems == 0 && aligned(vectors_in.in) && vectors_in.stride % kAtOnce == 0;
  const A* in = vectors_in.in;
  int from[kImages];
#pragma unroll
  for (int n = 0; n < kImages; ++n) from[n] = (n < vectors_in.count ? n : 0) * vectors_in.stride;
  int lanes = 1;
  while (lanes < 32 && lanes * (vectors ? kItems : 1) < M) lanes *= 2;
  const int at_once = 32 / lanes, first = lane & (lanes - 1);
  for (int block = warp * at_once * kRows; block < rows; block += warps * at_once * kRows) {
    const int row = block + lane / lanes;  // and every at_once-th from there
    A sums[kRows][kImages] = {};
    if (vectors) {
      for (int m = first * kItems; m < M; m += lanes * kItems) {
        Vector<W> w[kRows];
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
          const int r = row + i * at_once;
          w[i] = load_vector(reinterpret_cast<const Vector<W>*>(weight + (r < rows ? r : 0) * stride + m));
        }
#pragma unroll
        for (int j = 0; j < kItems; j += kAtOnce) {
#pragma unroll
          for (int n = 0; n < kImages; ++n) {
            const Vector<A> v = load_vector(reinterpret_cast<const Vector<A>*>(in + (from[n] + m + j)));
#pragma unroll
            for (int k = 0; k < kAtOnce; ++k) {
#pragma unroll
              for (int i = 0; i < kRows; ++i) sums[i][n] += A(widen(w[i].items[j + k])) * v.items[k];
            }
          }
        }
      }
    } else {
      for (int m = first; m < M; m += lanes) {
        A v[kImages];
#pragma unroll
        for (int n = 0; n < kImages; ++n) v[n] = in[from[n] + m];
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
          const int r = row + i * at_once;
          const A w = widen(weight[(r < rows ? r : 0) * stride + m]);
#pragma unroll
          for (int n = 0; n < kImages; ++n) sums[i][n] += w * v[n];
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int n = 0; n < kImages; ++n) {
        const A sum = sum_lanes(sums[i][n], lanes);
        if (first == 0 && row + i * at_once < rows && n < vectors_in.count) out(row + i * at_once, n, sum);
      }
    }
  }
}

}  // namespace senet::cuda
