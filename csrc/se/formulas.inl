// The formulas in the rows of activations.h, in terms of exp, tanh and erf. Every processor includes them into its own
// namespace, with those three in scope and SENET_FORMULA in front of each function.

template <class A>
SENET_FORMULA A clamp(A z, double lo, double hi) {
  return z < A(lo) ? A(lo) : (z > A(hi) ? A(hi) : z);
}
template <class A>
SENET_FORMULA A sigmoid(A z) {
  return 1 / (1 + exp(-z));
}
template <class A>
SENET_FORMULA A sigmoid_slope(A z) {
  const A s = sigmoid(z);
  return s * (1 - s);
}
template <class A>
SENET_FORMULA A normal_cdf(A z) {
  return A(0.5) * (1 + erf(z * A(0.70710678118654752)));
}
template <class A>
SENET_FORMULA A normal_pdf(A z) {
  return A(0.39894228040143268) * exp(A(-0.5) * z * z);
}
template <class A>
SENET_FORMULA A gelu_inner(A z) {
  return A(0.79788456080286536) * (z + A(0.044715) * z * z * z);
}
template <class A>
SENET_FORMULA A gelu_tanh_slope(A z_) {
  const A z = clamp(z_, -30, 30);  // 0 and 1 to the last bit from there on, where inner_slope would overflow
  const A t = tanh(gelu_inner(z));
  const A inner_slope = A(0.79788456080286536) * (1 + 3 * A(0.044715) * z * z);
  return A(0.5) * (1 + t) + A(0.5) * z * (1 - t * t) * inner_slope;
}
// tanh(log(1 + e^z)) = n / (n + 2) with n = e^z (e^z + 2); 1 to the last bit from z = 20 on.
template <class A>
SENET_FORMULA A tanh_softplus(A z) {
  const A e = exp(z > 20 ? A(20) : z);
  const A n = e * (e + 2);
  return n / (n + 2);
}
template <class A>
SENET_FORMULA A mish_slope(A z) {
  const A t = tanh_softplus(z);
  return t + z * (1 - t * t) * sigmoid(z);
}
