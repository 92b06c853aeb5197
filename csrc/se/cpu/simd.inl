// Vec<A>: 64 bytes of float or double as one to four native vectors, with the loads and stores of every data type. Part of
// kernels.inl. Lanes are the same on every ISA, so sums come out in the same order.

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
SENET_OPERATOR(-)
SENET_OPERATOR(*)
#undef SENET_OPERATOR

// a * b + c, rounded once where the ISA can (all but x86-64's baseline): twice the speed of the matrix products.
SENET_INLINE NativeOf<float>::type fma_part(NativeOf<float>::type a, NativeOf<float>::type b, NativeOf<float>::type c) {
#if SENET_VECTOR_BYTES == 64
  return (NativeOf<float>::type)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif SENET_VECTOR_BYTES == 32
  return (NativeOf<float>::type)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return vfmaq_f32(c, a, b);
#else
  return a * b + c;
#endif
}
SENET_INLINE NativeOf<double>::type fma_part(NativeOf<double>::type a, NativeOf<double>::type b, NativeOf<double>::type c) {
#if SENET_VECTOR_BYTES == 64
  return (NativeOf<double>::type)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif SENET_VECTOR_BYTES == 32
  return (NativeOf<double>::type)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif defined(__aarch64__)
  return vfmaq_f64(c, a, b);
#else
  return a * b + c;
#endif
}
template <class A>
SENET_INLINE Vec<A> fma(const Vec<A>& a, const Vec<A>& b, const Vec<A>& c) {
  Vec<A> v;
  for (int i = 0; i < Vec<A>::kParts; ++i) v.part[i] = fma_part(a.part[i], b.part[i], c.part[i]);
  return v;
}

template <class A>
SENET_INLINE Vec<A> positive(const Vec<A>& a) {  // 0 where a < 0; a NaN stays
  Vec<A> v;
  using Ints = typename NativeOf<int>::type;
  for (int i = 0; i < Vec<A>::kParts; ++i) {
    v.part[i] = (typename Vec<A>::Native)((Ints)a.part[i] & ~(Ints)(a.part[i] < typename Vec<A>::Native{}));
  }
  return v;
}

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
SENET_INLINE typename Vec<A>::Native join_parts(Vec<A> v) {
  for (int half = Vec<A>::kParts / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) v.part[i] = v.part[i] + v.part[i + half];
  }
  return v.part[0];
}
template <class A>
SENET_INLINE A sum(const Vec<A>& v) {
  return fold<A, Vec<A>::kWidth>(join_parts(v));
}

// a and b hold sums of 2 * kHalf lanes each, one behind the other: the sums of half as many, a's before b's.
template <class A, int kHalf, int... kLane>
SENET_INLINE auto halve(typename Vec<A>::Native a, typename Vec<A>::Native b, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(a, b, (kLane / kHalf * 2 * kHalf + kLane % kHalf)...) +
         __builtin_shufflevector(a, b, (kLane / kHalf * 2 * kHalf + kLane % kHalf + kHalf)...);
}
template <class A, int kHalf>
SENET_INLINE void halve_all(typename Vec<A>::Native* v) {
  for (int i = 0; i < kHalf; ++i) {
    v[i] = halve<A, kHalf>(v[2 * i], v[2 * i + 1], std::make_integer_sequence<int, Vec<A>::kWidth>());
  }
  if constexpr (kHalf > 1) halve_all<A, kHalf / 2>(v);
}
// sums[i] = sum(v[i]), to the same bits, for kCount vectors, which share the tree's additions.
template <class A, int kCount>
SENET_INLINE void sum_each(const Vec<A>* v, A* sums) {
  constexpr int kWidth = Vec<A>::kWidth;
  if constexpr (kCount % kWidth != 0) {
    for (int i = 0; i < kCount; ++i) sums[i] = sum(v[i]);
  } else {
    for (int first = 0; first < kCount; first += kWidth) {
      typename Vec<A>::Native joined[kWidth];
      for (int i = 0; i < kWidth; ++i) joined[i] = join_parts(v[first + i]);
      halve_all<A, kWidth / 2>(joined);
      __builtin_memcpy(sums + first, joined, sizeof joined[0]);
    }
  }
}

// ---- one native vector of A from, and to, kWidth elements of T ----
using Float = NativeOf<float>::type;
using Bits = NativeOf<unsigned>::type;
using Halves = ShortOf<unsigned short, Vec<float>::kWidth>::type;

// gcc 12 makes __builtin_convertvector of these a handful of instructions where the ISA has one.
SENET_INLINE Bits widen(Halves h) {
#if SENET_VECTOR_BYTES == 64
  return (Bits)_mm512_maskz_cvtepu16_epi32(0xFFFF, (__m256i)h);
#elif SENET_VECTOR_BYTES == 32
  return (Bits)_mm256_cvtepu16_epi32((__m128i)h);
#else
  return __builtin_convertvector(h, Bits);
#endif
}
SENET_INLINE Halves narrow(Bits bits) {  // of numbers below 2^16
#if SENET_VECTOR_BYTES == 64
  return (Halves)_mm512_maskz_cvtepi32_epi16(0xFFFF, (__m512i)bits);
#elif SENET_VECTOR_BYTES == 32
  const __m256i pairs = _mm256_packus_epi32((__m256i)bits, (__m256i)bits);
  return (Halves)_mm256_castsi256_si128(_mm256_permute4x64_epi64(pairs, 0x08));
#else
  return __builtin_convertvector(bits, Halves);
#endif
}

SENET_INLINE Bits select(Bits mask, Bits a, Bits b) { return (mask & a) | (~mask & b); }

SENET_INLINE void load_part(const float* p, Float& v) { __builtin_memcpy(&v, p, sizeof v); }
SENET_INLINE Float pack(Float v, const float*) { return v; }
SENET_INLINE void load_part(const double* p, NativeOf<double>::type& v) { __builtin_memcpy(&v, p, sizeof v); }
SENET_INLINE NativeOf<double>::type pack(NativeOf<double>::type v, const double*) { return v; }

SENET_INLINE void load_part(const float* p, NativeOf<double>::type& v) {
  typename ShortOf<float, Vec<double>::kWidth>::type narrow;
  __builtin_memcpy(&narrow, p, sizeof narrow);
  v = __builtin_convertvector(narrow, NativeOf<double>::type);
}
SENET_INLINE auto pack(NativeOf<double>::type v, const float*) {
  return __builtin_convertvector(v, typename ShortOf<float, Vec<double>::kWidth>::type);
}

SENET_INLINE void load_part(const bf16* p, Float& v) {
  Halves h;
  __builtin_memcpy(&h, p, sizeof h);
  v = (Float)(widen(h) << 16);
}
SENET_INLINE Halves pack(Float v, const bf16*) {
#if defined(SENET_BF16_CONVERSION)  // flushes denormals, which are to be kept; its NaNs are those below
  constexpr int kDenormal = 0x20;
  if (__builtin_expect(_mm512_fpclass_ps_mask((__m512)v, kDenormal) == 0, 1)) return (Halves)_mm512_cvtneps_pbh((__m512)v);
#endif
  const Bits bits = (Bits)v;
  const Bits rounded = bits + 0x7FFF + ((bits >> 16) & 1);  // to nearest, ties to even
  const Bits quiet_nan = bits | 0x400000;
  return narrow(select((Bits)(v != v), quiet_nan, rounded) >> 16);
}

#if SENET_VECTOR_BYTES == 64  // maskz with every lane: gcc 12 warns of the plain forms
SENET_INLINE void load_part(const f16* p, Float& v) {
  v = (Float)_mm512_maskz_cvtph_ps(0xFFFF, _mm256_loadu_si256((const __m256i*)p));
}
SENET_INLINE Halves pack(Float v, const f16*) { return (Halves)_mm512_maskz_cvtps_ph(0xFFFF, (__m512)v, 0); }
#elif SENET_VECTOR_BYTES == 32
SENET_INLINE void load_part(const f16* p, Float& v) { v = (Float)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
SENET_INLINE Halves pack(Float v, const f16*) { return (Halves)_mm256_cvtps_ph((__m256)v, 0); }
#elif defined(__aarch64__)  // of the first aarch64 already
SENET_INLINE void load_part(const f16* p, Float& v) {
  Halves h;
  __builtin_memcpy(&h, p, sizeof h);
  v = (Float)vcvt_f32_f16((float16x4_t)h);
}
SENET_INLINE Halves pack(Float v, const f16*) { return (Halves)vcvt_f16_f32((float32x4_t)v); }
#else  // Two dozen instructions each, so they are called: written into every loop they took a fifth of the compiler's time.
[[gnu::noinline]] void load_part(const f16* p, Float& v) {
  Halves h;
  __builtin_memcpy(&h, p, sizeof h);
  const Bits wide = widen(h);
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
[[gnu::noinline]] Halves pack(Float v, const f16*) {
  const Bits bits = (Bits)v, sign = bits & 0x80000000u, magnitude = bits & 0x7FFFFFFF;
  const Bits normal = (magnitude - (112u << 23) + 0xFFF + ((magnitude >> 13) & 1)) >> 13;  // ties to even
  const Bits denormal = (Bits)((Float)magnitude + 0.5f) - 0x3F000000;  // the addition rounds at the last denormal bit
  const Bits nan = 0x7E00 | ((magnitude >> 13) & 0x3FF);
  Bits half = select((Bits)(magnitude < 0x38800000), denormal, normal);
  half = select((Bits)(magnitude >= 0x47800000), select((Bits)(magnitude > 0x7F800000), nan, Bits{} + 0x7C00), half);
  return narrow(half | (sign >> 16));
}
#endif

// Whether loops that write are compiled once more with stores past the caches, and with prefetches on the way. With the oldest
// vectors they are not: it was a third of the compiler's time for them.
constexpr bool kCopies = SENET_VECTOR_BYTES > 16;

// Past the caches, to aligned memory: no line of it is read before it is written. Seen by other threads after fence().
template <class Packed>
SENET_INLINE void stream_part(const Packed& v, void* p) {
#if defined(__x86_64__)
  if constexpr (sizeof v == 8) {
    _mm_stream_si64(static_cast<long long*>(p), __builtin_bit_cast(long long, v));
  } else if constexpr (sizeof v == 16) {
    _mm_stream_si128(static_cast<__m128i*>(p), (__m128i)v);
  }
#if SENET_VECTOR_BYTES >= 32
  else if constexpr (sizeof v == 32) {
    _mm256_stream_si256(static_cast<__m256i*>(p), (__m256i)v);
  }
#endif
#if SENET_VECTOR_BYTES >= 64
  else if constexpr (sizeof v == 64) {
    _mm512_stream_si512(static_cast<__m512i*>(p), (__m512i)v);
  }
#endif
#else
  __builtin_memcpy(p, &v, sizeof v);
#endif
}
SENET_INLINE void fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

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
  for (int i = 0; i < Vec<A>::kParts; ++i) {
    const auto packed = pack(v.part[i], p);
    __builtin_memcpy(p + i * Vec<A>::kWidth, &packed, sizeof packed);
  }
}
template <class A, class T>
SENET_INLINE void stream(const Vec<A>& v, T* p) {
  for (int i = 0; i < Vec<A>::kParts; ++i) stream_part(pack(v.part[i], p), p + i * Vec<A>::kWidth);
}
template <class T>
SENET_INLINE void copy(const T* from, T* to, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) to[i] = from[i];
}
// The n < kLanes lanes of a row's end, zeros behind; touches nothing behind p + n. Masks where the ISA has them for every
// type: a layer of few hidden channels is nothing but such ends, and took 3x as long element by element.
template <class A, class T>
SENET_INLINE Vec<A> load(const T* p, std::int64_t n) {
#if SENET_VECTOR_BYTES == 64
  const std::uint64_t mask = (std::uint64_t{1} << n * sizeof(T)) - 1;
  T lane[64 / sizeof(T)];
  const __m512i lanes = _mm512_maskz_loadu_epi8(mask, p);
  __builtin_memcpy(lane, &lanes, sizeof lanes);
#else
  T lane[Vec<A>::kLanes] = {};
  copy(p, lane, n);
#endif
  return load<A>(lane);
}
template <class A, class T>
SENET_INLINE void store(const Vec<A>& v, T* p, std::int64_t n) {
  T lane[64 / sizeof(T)];
  store(v, lane);
#if SENET_VECTOR_BYTES == 64
  __m512i lanes;
  __builtin_memcpy(&lanes, lane, sizeof lanes);
  _mm512_mask_storeu_epi8(p, (std::uint64_t{1} << n * sizeof(T)) - 1, lanes);
#else
  copy(lane, p, n);
#endif
}

// Lanes of ones where the last n are, zeros before them.
template <class A>
SENET_INLINE auto last_lanes(std::int64_t n, int part) {
  static constexpr Table<128> kMask = make_mask_table();
  typename NativeOf<int>::type mask;
  __builtin_memcpy(&mask, kMask.byte + n * static_cast<std::int64_t>(sizeof(A)) + part * SENET_VECTOR_BYTES, sizeof mask);
  return mask;
}
// The last n lanes of v, zeros before them.
template <class A>
SENET_INLINE Vec<A> keep_last(const Vec<A>& v, std::int64_t n) {
  Vec<A> kept;
  for (int i = 0; i < Vec<A>::kParts; ++i) {
    kept.part[i] = (typename Vec<A>::Native)((typename NativeOf<int>::type)v.part[i] & last_lanes<A>(n, i));
  }
  return kept;
}
// The last n lanes of `behind`, `before` in those before them.
template <class A>
SENET_INLINE Vec<A> join(const Vec<A>& before, const Vec<A>& behind, std::int64_t n) {
  using Ints = typename NativeOf<int>::type;
  Vec<A> joined;
  for (int i = 0; i < Vec<A>::kParts; ++i) {
    const Ints mask = last_lanes<A>(n, i);
    joined.part[i] = (typename Vec<A>::Native)(((Ints)behind.part[i] & mask) | ((Ints)before.part[i] & ~mask));
  }
  return joined;
}
