// The elementary functions that the rows of activations.h stand on, branch-free in float so that loops over them vectorise.
// Part of kernels.inl: compiled once per ISA, in its namespace, and calling nothing but libm's C functions, so that no copy of
// a shared inline function is ever compiled with a wider ISA than the caller's.

constexpr float bits_to_float(int bits) { return __builtin_bit_cast(float, bits); }

// a * b + c, rounded once where the ISA can, as fma_part of simd.inl
inline float fused(float a, float b, float c) {
#if SENET_VECTOR_BYTES >= 32 || defined(__aarch64__)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

// e^x to 1 ulp: 2^n times a polynomial of degree 6 on [-ln2/2, ln2/2] (coefficients of the Cephes library). 2^n is applied
// in two halves, so that results beyond the normal range become infinite or denormal, as libm's do.
inline float exp(float x) {
  x = x < -104.0f ? -104.0f : x > 89.0f ? 89.0f : x;         // a NaN passes
  const float shifted = fused(x, 1.44269504f, 12582912.0f);  // 1.5 * 2^23: rounds to an integer, which its low bits hold
  const float n = shifted - 12582912.0f;
  const float r = fused(n, 2.12194440e-4f, fused(n, -0.693359375f, x));
  float p = fused(1.9875691500e-4f, r, 1.3981999507e-3f);
  p = fused(p, r, 8.3334519073e-3f);
  p = fused(p, r, 4.1665795894e-2f);
  p = fused(p, r, 1.6666665459e-1f);
  p = fused(p, r, 5.0000001201e-1f);
  const float mantissa = fused(p * r, r, r) + 1.0f;
  const int exponent = __builtin_bit_cast(int, shifted) - 0x4B400000;
  const int half = exponent >> 1;
  return mantissa * bits_to_float((half + 127) << 23) * bits_to_float((exponent - half + 127) << 23);
}
inline double exp(double x) { return ::exp(x); }

// tanh: a polynomial (Cephes) where 1 - 2 / (e^2x + 1) would cancel.
inline float tanh(float x) {
  const float magnitude = x < 0 ? -x : x;
  const float square = x * x;
  float p = -5.70498872745e-3f;
  p = p * square + 2.06390887954e-2f;
  p = p * square - 5.37397155531e-2f;
  p = p * square + 1.33314422036e-1f;
  p = p * square - 3.33332819422e-1f;
  const float near = x + x * square * p;
  const float far = 1.0f - 2.0f / (exp(2.0f * magnitude) + 1.0f);
  return magnitude < 0.625f ? near : (x < 0 ? -far : far);
}
inline double tanh(double x) { return ::tanh(x); }

// erf to 1.3 ulp: a polynomial below 1, above it 1 - e^-q, with minimax fits of erf(x) / x - 1 and of -log(erfc(x)).
inline float erf(float x) {
  const float magnitude = x < 0 ? -x : x, square = x * x;
  float p = 7.853857721e-5f;
  p = p * square - 8.010192526e-4f;
  p = p * square + 5.188327561e-3f;
  p = p * square - 2.685381187e-2f;
  p = p * square + 1.128358515e-1f;
  p = p * square - 3.761262582e-1f;
  p = p * square + 1.28379166e-1f;
  const float t = magnitude > 4.0f ? 4.0f : magnitude;  // erf is 1 in float from there on; a NaN passes
  float q = -1.863800841e-4f;
  q = q * t + 2.947666795e-3f;
  q = q * t - 2.183809696e-2f;
  q = q * t + 1.031068214e-1f;
  q = q * t + 6.381447582e-1f;
  q = q * t + 1.127089234f;
  q = q * t + 3.415125936e-4f;
  const float far = 1.0f - exp(-q);
  return magnitude < 1.0f ? x + x * p : (x < 0 ? -far : far);
}
inline double erf(double x) { return ::erf(x); }

#define SENET_FORMULA inline
#include "se/formulas.inl"
#undef SENET_FORMULA
