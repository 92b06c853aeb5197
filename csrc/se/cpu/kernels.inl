// The kernels, written once. Each ISA's file includes this inside its target region with SENET_ISA (namespace),
// SENET_ISA_NAME and SENET_VECTOR_BYTES defined. Everything is in an anonymous namespace and nothing of the standard
// library's templates is used: a copy compiled for a wide ISA must never be linked into code that runs without it.
namespace senet::SENET_ISA {
namespace {

#include "se/cpu/math.inl"
#include "se/cpu/simd.inl"
#include "se/cpu/vectors.inl"

using std::int64_t;

// ---- activations over arrays; out may be z or grad ----
// Else gcc tests whether they overlap, and takes a scalar loop where they are the same.

template <class A>
void activation_value(const Activation& activation, const A* z_, A* out, int64_t n) {
  A p[4];
  for (int i = 0; i < 4; ++i) p[i] = A(activation.arguments[i]);
  switch (activation.kind) {
#define SENET_CASE(name, arguments, optional, value, gradient) \
  case ActivationKind::name:                                   \
    SENET_NO_OVERLAP for (int64_t i = 0; i < n; ++i) {         \
      const A z = z_[i];                                       \
      out[i] = A(value);                                       \
    }                                                          \
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
#define SENET_CASE(name, arguments, optional, value, gradient) \
  case ActivationKind::name:                                   \
    SENET_NO_OVERLAP for (int64_t i = 0; i < n; ++i) {         \
      [[maybe_unused]] const A z = z_[i];                      \
      const A g = grad[i];                                     \
      out[i] = A(gradient);                                    \
    }                                                          \
    break;
    SENET_ACTIVATIONS(SENET_CASE)
#undef SENET_CASE
  }
}

#include "se/cpu/sums.inl"

#include "se/cpu/data.inl"
#include "se/cpu/norm.inl"
#include "se/cpu/product.inl"
#include "se/cpu/weights.inl"

}  // namespace

#if defined(SENET_BF16_CONVERSION)  // what the conversions change; the rest of this ISA's table is AVX-512's
constexpr DataKernels<float> bf16_data = Data<float, bf16>::table();
constexpr WeightKernels<float> bf16_weights = Weights<float, bf16>::table();
constexpr ProductKernels bf16_product = Product<bf16, Registers<Pairs>>::table(), amx_product = Product<bf16, Tiles>::table();
#else
extern const Kernels kernels;
constinit const Kernels kernels = {
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
    Product<float, Registers<Floats>>::table(),
    Product<bf16, Registers<Floats>>::table(),
    Product<f16, Registers<Floats>>::table(),
    Norm<float>::table(),
    Norm<double>::table(),
};
#endif

}  // namespace senet::SENET_ISA
