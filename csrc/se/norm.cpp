#include "se/norm.h"

// One copy for each instruction set; every sum has kLanes partial sums, so their bits are the same.
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define SENET_CLONES __attribute__((target_clones("default", "avx2", "arch=x86-64-v4")))
#else
#define SENET_CLONES
#endif

namespace senet::norm {
namespace {

using std::int64_t;
constexpr int64_t kLanes = 16;

template <class T>
inline __attribute__((always_inline)) T total(const T* lanes) {
  T sums[kLanes / 2];
  for (int64_t l = 0; l < kLanes / 2; ++l) sums[l] = lanes[l] + lanes[l + kLanes / 2];
  for (int64_t width = kLanes / 4; width > 0; width /= 2)
    for (int64_t l = 0; l < width; ++l) sums[l] += sums[l + width];
  return sums[0];
}

// The sum of value(i) for i in [0, n).
template <class T, class Value>
inline __attribute__((always_inline)) T sum(int64_t n, const Value& value) {
  T lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int64_t l = 0; l < kLanes; ++l) lanes[l] += value(i + l);
  for (int64_t l = 0; i < n; ++i, ++l) lanes[l] += value(i);
  return total(lanes);
}

template <class T>
inline __attribute__((always_inline)) T masked(T grad, T y) {
  return y <= T(0) ? T(0) : grad;  // a NaN of y lets the gradient through, as in torch
}

template <class T>
inline __attribute__((always_inline)) void moments_of(const Maps& m, int64_t begin, int64_t end, const T* __restrict x,
                                                      T* __restrict mean, T* __restrict squares) {
  if (!m.last) {
    for (int64_t row = begin * m.C; row < end * m.C; ++row) {
      const T* p = x + row * m.I;
      const T average = sum<T>(m.I, [=](int64_t i) { return p[i]; }) / T(m.I);
      mean[row] = average;
      squares[row] = sum<T>(m.I, [=](int64_t i) { return (p[i] - average) * (p[i] - average); });
    }
    return;
  }
  for (int64_t b = begin; b < end; ++b) {
    const T* image = x + b * m.I * m.C;
    T *to_mean = mean + b * m.C, *to_squares = squares + b * m.C;
    for (int64_t c = 0; c < m.C; ++c) to_mean[c] = to_squares[c] = 0;
    for (int64_t i = 0; i < m.I; ++i) {  // distances from the first pixel, so that nothing cancels that need not
      const T* p = image + i * m.C;
      for (int64_t c = 0; c < m.C; ++c) {
        const T distance = p[c] - image[c];
        to_mean[c] += distance;
        to_squares[c] += distance * distance;
      }
    }
    for (int64_t c = 0; c < m.C; ++c) {
      const T distance = to_mean[c] / T(m.I);
      to_squares[c] -= distance * to_mean[c];
      to_mean[c] = image[c] + distance;
    }
  }
}

template <class T>
inline __attribute__((always_inline)) void apply_to(const Maps& m, int64_t begin, int64_t end, const T* __restrict x,
                                                    const T* __restrict mean, const T* __restrict scale,
                                                    const T* __restrict shift, const T* __restrict residual, T* __restrict y) {
  const int64_t rows = m.last ? m.I : m.C, columns = m.last ? m.C : m.I;
  for (int64_t b = begin; b < end; ++b) {
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t at = (b * rows + row) * columns;
      if (m.last) {
        const T *a = mean + b * m.C, *s = scale + b * m.C, *t = shift + b * m.C;
        for (int64_t c = 0; c < columns; ++c) {
          const T z = (x[at + c] - a[c]) * s[c] + t[c] + residual[at + c];
          y[at + c] = z < T(0) ? T(0) : z;
        }
      } else {
        const T a = mean[b * m.C + row], s = scale[b * m.C + row], t = shift[b * m.C + row];
        for (int64_t i = 0; i < columns; ++i) {
          const T z = (x[at + i] - a) * s + t + residual[at + i];
          y[at + i] = z < T(0) ? T(0) : z;
        }
      }
    }
  }
}

template <class T>
inline __attribute__((always_inline)) void sums_of(const Maps& m, int64_t begin, int64_t end, const T* __restrict grad_y,
                                                   const T* __restrict y, const T* __restrict x, const T* __restrict mean,
                                                   T* __restrict grad_sum, T* __restrict product_sum) {
  if (!m.last) {
    for (int64_t row = begin * m.C; row < end * m.C; ++row) {
      const T *g = grad_y + row * m.I, *v = y + row * m.I, *p = x + row * m.I;
      const T average = mean[row];
      grad_sum[row] = sum<T>(m.I, [=](int64_t i) { return masked(g[i], v[i]); });
      product_sum[row] = sum<T>(m.I, [=](int64_t i) { return masked(g[i], v[i]) * (p[i] - average); });
    }
    return;
  }
  for (int64_t b = begin; b < end; ++b) {
    T *to_grad = grad_sum + b * m.C, *to_product = product_sum + b * m.C;
    const T* average = mean + b * m.C;
    for (int64_t c = 0; c < m.C; ++c) to_grad[c] = to_product[c] = 0;
    for (int64_t i = 0; i < m.I; ++i) {
      const int64_t at = (b * m.I + i) * m.C;
      for (int64_t c = 0; c < m.C; ++c) {
        const T grad = masked(grad_y[at + c], y[at + c]);
        to_grad[c] += grad;
        to_product[c] += grad * (x[at + c] - average[c]);
      }
    }
  }
}

template <class T>
inline __attribute__((always_inline)) void gradients_of(const Maps& m, int64_t begin, int64_t end, const T* __restrict grad_y,
                                                        const T* __restrict y, const T* __restrict x, const T* __restrict mean,
                                                        const T* __restrict scale, const T* __restrict slope,
                                                        const T* __restrict offset, T* __restrict grad_x,
                                                        T* __restrict grad_residual) {
  const int64_t rows = m.last ? m.I : m.C, columns = m.last ? m.C : m.I;
  for (int64_t b = begin; b < end; ++b) {
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t at = (b * rows + row) * columns;
      if (m.last) {
        const T *a = mean + b * m.C, *s = scale + b * m.C, *k = slope + b * m.C, *o = offset + b * m.C;
        for (int64_t c = 0; c < columns; ++c) {
          const T grad = masked(grad_y[at + c], y[at + c]);
          grad_residual[at + c] = grad;
          grad_x[at + c] = grad * s[c] + (x[at + c] - a[c]) * k[c] + o[c];
        }
      } else {
        const int64_t n = b * m.C + row;
        const T a = mean[n], s = scale[n], k = slope[n], o = offset[n];
        for (int64_t i = 0; i < columns; ++i) {
          const T grad = masked(grad_y[at + i], y[at + i]);
          grad_residual[at + i] = grad;
          grad_x[at + i] = grad * s + (x[at + i] - a) * k + o;
        }
      }
    }
  }
}

}  // namespace

// Clones cannot be templates.
#define SENET_NORM(T)                                                                                                        \
  SENET_CLONES void moments(const Maps& m, int64_t begin, int64_t end, const T* x, T* mean, T* squares) {                    \
    moments_of(m, begin, end, x, mean, squares);                                                                             \
  }                                                                                                                          \
  SENET_CLONES void apply(const Maps& m, int64_t begin, int64_t end, const T* x, const T* mean, const T* scale,              \
                          const T* shift, const T* residual, T* y) {                                                         \
    apply_to(m, begin, end, x, mean, scale, shift, residual, y);                                                             \
  }                                                                                                                          \
  SENET_CLONES void sums(const Maps& m, int64_t begin, int64_t end, const T* grad_y, const T* y, const T* x, const T* mean,  \
                         T* grads, T* products) {                                                                            \
    sums_of(m, begin, end, grad_y, y, x, mean, grads, products);                                                             \
  }                                                                                                                          \
  SENET_CLONES void gradients(const Maps& m, int64_t begin, int64_t end, const T* grad_y, const T* y, const T* x,            \
                              const T* mean, const T* scale, const T* slope, const T* offset, T* grad_x, T* grad_residual) { \
    gradients_of(m, begin, end, grad_y, y, x, mean, scale, slope, offset, grad_x, grad_residual);                            \
  }

SENET_NORM(float)
SENET_NORM(double)

}  // namespace senet::norm
