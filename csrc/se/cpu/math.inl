// Scalar functions for the rows of activations.h, branch-free in float so that loops over them vectorise. Part of
// kernels.inl: compiled once per ISA, in its namespace, and calling nothing but libm's C functions, so that no copy of a
// shared inline function is ever compiled with a wider ISA than the caller's.

constexpr float bits_to_float(int bits) { return __builtin_bit_cast(float, bits); }

// e^x to 1 ulp: 2^n times a polynomial of degree 6 on [-ln2/2, ln2/2] (coefficients of the Cephes library). 2^n is applied
// in two halves, so that results beyond the normal range become infinite or denormal, as libm's do.
inline float exp(float x) {
  x = x < -104.0f ? -104.0f : x > 89.0f ? 89.0f : x;    // a NaN passes
  const float shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: rounds to an integer, which its low bits then hold
  const float n = shifted - 12582912.0f;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const float mantissa = p * r * r + r + 1.0f;
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

inline float erf(float x) { return ::erff(x); }
inline double erf(double x) { return ::erf(x); }

template <class A>
inline A clamp(A z, double lo, double hi) {
  return z < A(lo) ? A(lo) : (z > A(hi) ? A(hi) : z);
}
template <class A>
inline A sigmoid(A z) {
  return 1 / (1 + exp(-z));
}
template <class A>
inline A sigmoid_slope(A z) {
  const A s = sigmoid(z);
  return s * (1 - s);
}
template <class A>
inline A normal_cdf(A z) {
  return A(0.5) * (1 + erf(z * A(0.70710678118654752)));
}
template <class A>
inline A normal_pdf(A z) {
  return A(0.39894228040143268) * exp(A(-0.5) * z * z);
}
template <class A>
inline A gelu_inner(A z) {
  return A(0.79788456080286536) * (z + A(0.044715) * z * z * z);
}
template <class A>
inline A gelu_tanh_slope(A z_) {
  const A z = clamp(z_, -30, 30);  // 0 and 1 to the last bit from there on, where inner_slope would overflow
  const A t = tanh(gelu_inner(z));
  const A inner_slope = A(0.79788456080286536) * (1 + 3 * A(0.044715) * z * z);
  return A(0.5) * (1 + t) + A(0.5) * z * (1 - t * t) * inner_slope;
}
// tanh(log(1 + e^z)) = n / (n + 2) with n = e^z (e^z + 2); 1 to the last bit from z = 20 on.
template <class A>
inline A tanh_softplus(A z) {
  const A e = exp(z > 20 ? A(20) : z);
  const A n = e * (e + 2);
  return n / (n + 2);
}
template <class A>
inline A mish_slope(A z) {
  const A t = tanh_softplus(z);
  return t + z * (1 - t * t) * sigmoid(z);
}
