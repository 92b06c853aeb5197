// BatchNorm and SE in training: what reads or writes whole maps. The rest is [B, C] numbers and lives in Python
// (senet_fast/se/norm.py). Every function handles images [begin, end), in float and in double.
#pragma once
#include <cstdint>

namespace senet::norm {

// x is [B, C, I], or [B, I, C] where channels are `last`; per-image numbers are [B, C].
struct Maps {
  std::int64_t C, I;
  bool last;
};

// moments: the mean over I, and the sum of squared distances from it.
// apply: y = relu((x - mean) * scale + shift + residual).
// sums, with grad = grad_y where y > 0: over I, of grad and of grad * (x - mean).
// gradients: grad_x = grad * scale + (x - mean) * slope + offset, grad_residual = grad.
#define SENET_NORM_DECLARE(T)                                                                                               \
  void moments(const Maps& maps, std::int64_t begin, std::int64_t end, const T* x, T* mean, T* squares);                    \
  void apply(const Maps& maps, std::int64_t begin, std::int64_t end, const T* x, const T* mean, const T* scale,             \
             const T* shift, const T* residual, T* y);                                                                      \
  void sums(const Maps& maps, std::int64_t begin, std::int64_t end, const T* grad_y, const T* y, const T* x, const T* mean, \
            T* grads, T* products);                                                                                         \
  void gradients(const Maps& maps, std::int64_t begin, std::int64_t end, const T* grad_y, const T* y, const T* x,           \
                 const T* mean, const T* scale, const T* slope, const T* offset, T* grad_x, T* grad_residual);

SENET_NORM_DECLARE(float)
SENET_NORM_DECLARE(double)
#undef SENET_NORM_DECLARE

}  // namespace senet::norm
