// The elementary functions that the rows of activations.h stand on, branch-free so that loops over them vectorise. Part of
// kernels.inl: compiled once per ISA, in its namespace, and calling nothing but libm's C functions, so that no copy of a shared
// inline function is ever compiled with a wider ISA than the caller's.

// a * b + c, rounded once where the ISA can, as fma_part of simd.inl
#if SENET_VECTOR_BYTES >= 32 || defined(__aarch64__)
inline float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double fused(double a, double b, double c) { return __builtin_fma(a, b, c); }
#else
inline float fused(float a, float b, float c) { return a * b + c; }
inline double fused(double a, double b, double c) { return a * b + c; }
#endif

// What e^x is made of: 2^n and e^r with r in [-ln2/2, ln2/2], whose polynomial is exact in 1 + r. The sum of x / ln2 and 1.5
// times the largest power of 2 that has a fraction is rounded to an integer, which its low bits hold.
struct FloatExp {
  using Bits = unsigned;
  static constexpr float kRound = 12582912.0f, kOverLn2 = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  static constexpr float kSmallest = -104.0f, kLargest = 89.0f;
  static constexpr int kMantissa = 23, kBias = 127;
  static inline float over_r_squared(float r) {  // (e^r - 1 - r) / r^2: the coefficients of the Cephes library
    float p = fused(1.9875691500e-4f, r, 1.3981999507e-3f);
    p = fused(p, r, 8.3334519073e-3f);
    p = fused(p, r, 4.1665795894e-2f);
    p = fused(p, r, 1.6666665459e-1f);
    return fused(p, r, 5.0000001201e-1f);
  }
};
struct DoubleExp {
  using Bits = unsigned long long;
  static constexpr double kRound = 6755399441055744.0, kOverLn2 = 1.4426950408889634, kLn2High = 0.693147180369123816490,
                          kLn2Low = 1.90821492927058770002e-10;
  static constexpr double kSmallest = -746, kLargest = 711;
  static constexpr int kMantissa = 52, kBias = 1023;
  static inline double over_r_squared(double r) {  // Taylor's, up to r^13 / 13!
    double p = fused(1 / 6227020800.0, r, 1 / 479001600.0);
    p = fused(p, r, 1 / 39916800.0);
    p = fused(p, r, 1 / 3628800.0);
    p = fused(p, r, 1 / 362880.0);
    p = fused(p, r, 1 / 40320.0);
    p = fused(p, r, 1 / 5040.0);
    p = fused(p, r, 1 / 720.0);
    p = fused(p, r, 1 / 120.0);
    p = fused(p, r, 1 / 24.0);
    p = fused(p, r, 1 / 6.0);
    return fused(p, r, 0.5);
  }
};
inline FloatExp exp_of(float) { return {}; }
inline DoubleExp exp_of(double) { return {}; }

// 2^n for an n among the normal exponents that kRound was added to
template <class E, class A>
inline A power_of_2(A n_and_round) {
  using Bits = typename E::Bits;
  const Bits n = __builtin_bit_cast(Bits, n_and_round) - __builtin_bit_cast(Bits, E::kRound);
  return __builtin_bit_cast(A, (n + Bits(E::kBias)) << E::kMantissa);
}

// e^x to 1 ulp for x in [kSmallest, kLargest]. 2^n is applied in two halves, so that results beyond the normal range become
// infinite or denormal, as libm's do.
template <class A>
inline A exp_within(A x) {
  using E = decltype(exp_of(x));
  const A n = fused(x, E::kOverLn2, E::kRound) - E::kRound;
  const A r = fused(n, -E::kLn2Low, fused(n, -E::kLn2High, x));
  const A half = fused(n, A(0.5), E::kRound);
  const A rest = n - (half - E::kRound);
  const A e = fused(E::over_r_squared(r) * r, r, r) + 1;
  return e * power_of_2<E>(half) * power_of_2<E>(rest + E::kRound);
}
template <class A>
inline A exp(A x) {
  using E = decltype(exp_of(x));
  return exp_within(x < E::kSmallest ? E::kSmallest : x > E::kLargest ? E::kLargest : x);  // a NaN passes
}

template <class A>
inline A with_sign(A magnitude, A x) {
  if constexpr (sizeof(A) == sizeof(float)) return __builtin_copysignf(magnitude, x);
  return __builtin_copysign(magnitude, x);
}

// tanh to 2 ulp, and 1 where it rounds to that: t / (t + 2) or 1 - 2 / (t + 2) with t = e^2x - 1, which nothing cancels in:
// 2^n - 1 is exact, and n = 0 where x is small.
template <class A>
inline A tanh(A x) {
  using E = decltype(exp_of(x));
  const A magnitude = x < 0 ? -x : x;
  const A doubled = 2 * (magnitude > 20 ? A(20) : magnitude);  // tanh is 1 from there on; a NaN passes
  const A n = fused(doubled, E::kOverLn2, E::kRound) - E::kRound;
  const A r = fused(n, -E::kLn2Low, fused(n, -E::kLn2High, doubled));
  const A power = power_of_2<E>(n + E::kRound);
  const A t = fused(power, fused(E::over_r_squared(r) * r, r, r), power - 1);
  const bool small = t < 2;
  return with_sign((small ? 0 : 1) + (small ? t : -2) / (t + 2), x);
}

// erf for 1 + erf, so to 1e-7 and 3e-16: 1 - e^-qx with minimax fits of q = -log(erfc(x)) / x, up to where erf is 1.
inline float erf(float x) {
  const float magnitude = x < 0 ? -x : x;
  const float t = magnitude > 4.0f ? 4.0f : magnitude;  // a NaN passes
  float q = fused(3.144177754e-05f, t, -3.088136436e-04f);
  q = fused(q, t, 1.032433473e-03f);
  q = fused(q, t, 5.368891289e-04f);
  q = fused(q, t, -1.958392747e-02f);
  q = fused(q, t, 1.029196009e-01f);
  q = fused(q, t, 6.365977526e-01f);
  q = fused(q, t, 1.128380299e+00f);
  return with_sign(1.0f - exp_within(-q * t), x);
}
inline double erf(double x) {
  const double magnitude = x < 0 ? -x : x;
  const double t = magnitude > 6.0 ? 6.0 : magnitude, u = (t - 3.0) * (1.0 / 3.0);
  double q = fused(-0.0005004571108000778, u, -0.002958178640323567);
  q = fused(q, u, -0.007445012842306887);
  q = fused(q, u, -0.010224805352728876);
  q = fused(q, u, -0.00733302554772145);
  q = fused(q, u, -0.0008748898450619569);
  q = fused(q, u, 0.0031493395971042637);
  q = fused(q, u, 0.003021523816622917);
  q = fused(q, u, 0.0006357767992307214);
  q = fused(q, u, 0.00010714802483619473);
  q = fused(q, u, -0.0006557149137896752);
  q = fused(q, u, 7.384642005776266e-05);
  q = fused(q, u, 0.000744815045016512);
  q = fused(q, u, -0.003072179988361064);
  q = fused(q, u, 0.008268590514269295);
  q = fused(q, u, -0.018735845677660783);
  q = fused(q, u, 0.0386368596460311);
  q = fused(q, u, -0.0751762943378172);
  q = fused(q, u, 0.14188331470380344);
  q = fused(q, u, 2.7302993417036165);
  q = fused(q, u, 3.5734543473278437);
  return with_sign(1.0 - exp_within(-q * t), x);
}

#define SENET_FORMULA inline
#include "se/formulas.inl"
#undef SENET_FORMULA
