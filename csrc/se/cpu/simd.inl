// Vec<A>: 64 bytes of float or double as one to four native vectors, with the loads and stores of every data type. Part of
// kernels.inl. Lanes are the same on every ISA, so sums come out in the same order and to the same bits.

#define SENET_INLINE inline __attribute__((always_inline))

struct bf16 {
  unsigned short bits;
};
struct f16 {
  unsigned short bits;
};

template <class E>
struct NativeOf {
  typedef E type __attribute__((vector_size(SENET_VECTOR_BYTES)));
};
template <class E, int kCount>
struct ShortOf {  // kCount elements of a type narrower than A
  typedef E type __attribute__((vector_size(kCount * sizeof(E))));
};

template <class A>
struct Vec {
  using Native = typename NativeOf<A>::type;
  static constexpr int kLanes = 64 / sizeof(A);
  static constexpr int kParts = 64 / SENET_VECTOR_BYTES;
  static constexpr int kWidth = kLanes / kParts;
  Native part[kParts];
};

template <class A>
SENET_INLINE Vec<A> broadcast(A value) {
  Vec<A> v;
  for (auto& part : v.part) part = value - typename Vec<A>::Native{};
  return v;
}
#define SENET_OPERATOR(op)                                                       \
  template <class A>                                                             \
  SENET_INLINE Vec<A> operator op(const Vec<A>& a, const Vec<A>& b) {            \
    Vec<A> v;                                                                    \
    for (int i = 0; i < Vec<A>::kParts; ++i) v.part[i] = a.part[i] op b.part[i]; \
    return v;                                                                    \
  }
SENET_OPERATOR(+)
SENET_OPERATOR(*)
#undef SENET_OPERATOR

// The sum of the lanes, always by the same tree: halves onto each other until one is left. (memcpy of a half compiles to
// one extraction.)
template <class A, int kCount>
SENET_INLINE A fold(typename ShortOf<A, kCount>::type v) {
  if constexpr (kCount == 2) {
    return v[0] + v[1];
  } else {
    typename ShortOf<A, kCount / 2>::type low, high;
    __builtin_memcpy(&low, &v, sizeof low);
    __builtin_memcpy(&high, reinterpret_cast<const char*>(&v) + sizeof low, sizeof high);
    return fold<A, kCount / 2>(low + high);
  }
}
template <class A>
SENET_INLINE A sum(Vec<A> v) {
  for (int half = Vec<A>::kParts / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) v.part[i] = v.part[i] + v.part[i + half];
  }
  return fold<A, Vec<A>::kWidth>(v.part[0]);
}

// ---- one native vector of A from, and to, kWidth elements of T ----
using Float = NativeOf<float>::type;
using Bits = NativeOf<unsigned>::type;
using Halves = ShortOf<unsigned short, Vec<float>::kWidth>::type;

SENET_INLINE Bits select(Bits mask, Bits a, Bits b) { return (mask & a) | (~mask & b); }

SENET_INLINE void load_part(const float* p, Float& v) { __builtin_memcpy(&v, p, sizeof v); }
SENET_INLINE void store_part(Float v, float* p) { __builtin_memcpy(p, &v, sizeof v); }
SENET_INLINE void load_part(const double* p, NativeOf<double>::type& v) { __builtin_memcpy(&v, p, sizeof v); }
SENET_INLINE void store_part(NativeOf<double>::type v, double* p) { __builtin_memcpy(p, &v, sizeof v); }

SENET_INLINE void load_part(const float* p, NativeOf<double>::type& v) {
  typename ShortOf<float, Vec<double>::kWidth>::type narrow;
  __builtin_memcpy(&narrow, p, sizeof narrow);
  v = __builtin_convertvector(narrow, NativeOf<double>::type);
}
SENET_INLINE void store_part(NativeOf<double>::type v, float* p) {
  const auto narrow = __builtin_convertvector(v, typename ShortOf<float, Vec<double>::kWidth>::type);
  __builtin_memcpy(p, &narrow, sizeof narrow);
}

SENET_INLINE void load_part(const bf16* p, Float& v) {
  Halves h;
  __builtin_memcpy(&h, p, sizeof h);
  v = (Float)(__builtin_convertvector(h, Bits) << 16);
}
SENET_INLINE void store_part(Float v, bf16* p) {
  const Bits bits = (Bits)v;
  const Bits rounded = bits + 0x7FFF + ((bits >> 16) & 1);  // to nearest, ties to even
  const Bits quiet_nan = bits | 0x400000;
  const Halves h = __builtin_convertvector(select((Bits)(v != v), quiet_nan, rounded) >> 16, Halves);
  __builtin_memcpy(p, &h, sizeof h);
}

#if SENET_VECTOR_BYTES == 64  // maskz with every lane: gcc 12 warns of the plain forms
SENET_INLINE void load_part(const f16* p, Float& v) {
  v = (Float)_mm512_maskz_cvtph_ps(0xFFFF, _mm256_loadu_si256((const __m256i*)p));
}
SENET_INLINE void store_part(Float v, f16* p) { _mm256_storeu_si256((__m256i*)p, _mm512_maskz_cvtps_ph(0xFFFF, (__m512)v, 0)); }
#elif SENET_VECTOR_BYTES == 32
SENET_INLINE void load_part(const f16* p, Float& v) { v = (Float)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
SENET_INLINE void store_part(Float v, f16* p) { _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)v, 0)); }
#else
SENET_INLINE void load_part(const f16* p, Float& v) {
  Halves h;
  __builtin_memcpy(&h, p, sizeof h);
  const Bits wide = __builtin_convertvector(h, Bits);
  const Bits magnitude = (wide & 0x7FFF) << 13;
  const Bits exponent = magnitude & 0x0F800000;
  const Bits normal = magnitude + (112u << 23);
  const Bits infinite = normal + (112u << 23);
  // a denormal is read as a normal number of the smallest exponent, whose implicit one is then subtracted
  const Float denormal = (Float)(normal + (1u << 23)) - 6.103515625e-05f;
  Bits bits = select((Bits)(exponent == 0x0F800000), infinite, normal);
  bits = select((Bits)(exponent == 0), (Bits)denormal, bits);
  const Bits nan = (Bits)((wide & 0x7FFF) > 0x7C00);
  v = (Float)(bits | (nan & 0x400000) | ((wide & 0x8000) << 16));
}
SENET_INLINE void store_part(Float v, f16* p) {
  const Bits bits = (Bits)v, sign = bits & 0x80000000u, magnitude = bits & 0x7FFFFFFF;
  const Bits normal = (magnitude - (112u << 23) + 0xFFF + ((magnitude >> 13) & 1)) >> 13;  // ties to even
  const Bits denormal = (Bits)((Float)magnitude + 0.5f) - 0x3F000000;  // the addition rounds at the last denormal bit
  const Bits nan = 0x7E00 | ((magnitude >> 13) & 0x3FF);
  Bits half = select((Bits)(magnitude < 0x38800000), denormal, normal);
  half = select((Bits)(magnitude >= 0x47800000), select((Bits)(magnitude > 0x7F800000), nan, Bits{} + 0x7C00), half);
  const Halves h = __builtin_convertvector(half | (sign >> 16), Halves);
  __builtin_memcpy(p, &h, sizeof h);
}
#endif

template <int kBytes>
struct Table {
  char byte[kBytes];
};
constexpr Table<128> make_mask_table() {  // 64 bytes of zeros, 64 of ones
  Table<128> table{};
  for (int i = 64; i < 128; ++i) table.byte[i] = static_cast<char>(0xFF);
  return table;
}

// ---- whole vectors, and the elements left over at the end of a row ----
template <class A, class T>
SENET_INLINE Vec<A> load(const T* p) {
  Vec<A> v;
  for (int i = 0; i < Vec<A>::kParts; ++i) load_part(p + i * Vec<A>::kWidth, v.part[i]);
  return v;
}
template <class A, class T>
SENET_INLINE void store(const Vec<A>& v, T* p) {
  for (int i = 0; i < Vec<A>::kParts; ++i) store_part(v.part[i], p + i * Vec<A>::kWidth);
}
template <class T>
SENET_INLINE void copy(const T* from, T* to, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) to[i] = from[i];
}
template <class A, class T>
SENET_INLINE Vec<A> load(const T* p, std::int64_t n) {  // n lanes, zeros behind; touches nothing behind p + n
  T lane[Vec<A>::kLanes] = {};
  copy(p, lane, n);
  return load<A>(lane);
}
template <class A, class T>
SENET_INLINE void store(const Vec<A>& v, T* p, std::int64_t n) {
  T lane[Vec<A>::kLanes];
  store(v, lane);
  copy(lane, p, n);
}

// The last n lanes of v, zeros before them.
template <class A>
SENET_INLINE Vec<A> keep_last(const Vec<A>& v, std::int64_t n) {
  static constexpr Table<128> kMask = make_mask_table();
  const char* from = kMask.byte + n * static_cast<std::int64_t>(sizeof(A));
  Vec<A> kept;
  for (int i = 0; i < Vec<A>::kParts; ++i) {
    typename NativeOf<int>::type mask;
    __builtin_memcpy(&mask, from + i * SENET_VECTOR_BYTES, sizeof mask);
    kept.part[i] = (typename Vec<A>::Native)((typename NativeOf<int>::type)v.part[i] & mask);
  }
  return kept;
}

// body(i, load, store) over n elements in vectors. The elements left over come last, as a vector of which that many lanes
// are loaded and stored: slow, but each element is visited once.
template <class A, class Body>
SENET_INLINE void for_vectors(std::int64_t n, Body body) {
  constexpr int kLanes = Vec<A>::kLanes;
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    body(i, [](auto* p) { return load<A>(p); }, [](const Vec<A>& v, auto* p) { store(v, p); });
  }
  if (const std::int64_t rest = n - i; rest > 0) {
    body(i, [rest](auto* p) { return load<A>(p, rest); }, [rest](const Vec<A>& v, auto* p) { store(v, p, rest); });
  }
}

// The same for a body that writes other memory than it reads: the left over elements are then part of a whole vector that
// ends with the last of them, and some elements are computed twice.
template <class A, class Body>
SENET_INLINE void map_vectors(std::int64_t n, Body body) {
  constexpr int kLanes = Vec<A>::kLanes;
  if (n < kLanes) return for_vectors<A>(n, body);
  const auto whole_load = [](auto* p) { return load<A>(p); };
  const auto whole_store = [](const Vec<A>& v, auto* p) { store(v, p); };
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) body(i, whole_load, whole_store);
  if (i < n) body(n - kLanes, whole_load, whole_store);
}

// acc + term(i, load) over the elements that whole vectors up to `i` have left of n.
template <class A, class Term>
SENET_INLINE Vec<A> add_rest(const Vec<A>& acc, std::int64_t i, std::int64_t n, Term term) {
  constexpr int kLanes = Vec<A>::kLanes;
  const std::int64_t rest = n - i;
  if (rest == 0) return acc;
  if (n >= kLanes) return acc + keep_last(term(n - kLanes, [](auto* p) { return load<A>(p); }), rest);
  return acc + term(i, [rest](auto* p) { return load<A>(p, rest); });
}
