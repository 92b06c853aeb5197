// Sums over channels and rows. Part of kernels.inl.

// Two vectors of 2 * kLanes elements for sums, whose order is free: that in which they are cheapest to load.
template <class A>
struct Two {
  Vec<A> first, second;
};
template <class A>
SENET_INLINE Two<A> operator+(const Two<A>& a, const Two<A>& b) {
  return {a.first + b.first, a.second + b.second};
}
template <class A>
SENET_INLINE Two<A> operator*(const Two<A>& a, const Two<A>& b) {
  return {a.first * b.first, a.second * b.second};
}
struct InOrder {
  template <class A, class T>
  static SENET_INLINE Two<A> load_two(const T* p) {
    return {load<A>(p), load<A>(p + Vec<A>::kLanes)};
  }
  template <class A>
  static SENET_INLINE void restore(A*, std::int64_t) {}
};
// bfloat16s are the upper halves of floats: those of even places shifted, those of odd places as they lie in pairs.
struct EvenOdd {
  template <class A>
  static SENET_INLINE Two<A> load_two(const bf16* p) {
    Two<A> two;
    for (int i = 0; i < Vec<A>::kParts; ++i) {
      Bits pairs;
      __builtin_memcpy(&pairs, p + 2 * i * Vec<A>::kWidth, sizeof pairs);
      two.first.part[i] = (Float)(pairs << 16);
      two.second.part[i] = (Float)(pairs & 0xFFFF0000u);
    }
    return two;
  }
  // n sums, in pairs of vectors as loaded, into the order of their elements
  static SENET_INLINE void restore(float* sums, std::int64_t n) {
    constexpr int kLanes = Vec<float>::kLanes, kWidth = Vec<float>::kWidth;
    for (; n >= 2 * kLanes; n -= 2 * kLanes, sums += 2 * kLanes) {
      const Vec<float> even = load<float>(sums), odd = load<float>(sums + kLanes);
      for (int i = 0; i < Vec<float>::kParts; ++i) {
        interleave(even.part[i], odd.part[i], sums + 2 * i * kWidth, std::make_integer_sequence<int, kWidth>());
      }
    }
  }

 private:
  template <int... kLane>
  static SENET_INLINE void interleave(Float even, Float odd, float* p, std::integer_sequence<int, kLane...>) {
    constexpr int kWidth = sizeof...(kLane);
    const Float low = __builtin_shufflevector(even, odd, (kLane / 2 + kLane % 2 * kWidth)...);
    const Float high = __builtin_shufflevector(even, odd, (kWidth / 2 + kLane / 2 + kLane % 2 * kWidth)...);
    __builtin_memcpy(p, &low, sizeof low);
    __builtin_memcpy(p + kWidth, &high, sizeof high);
  }
};
template <class T>
struct OrderOf {
  using type = InOrder;
};
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
template <>
struct OrderOf<bf16> {
  using type = EvenOdd;
};
#endif

// The sum over a channel, lane by lane: four accumulators, so that additions overlap, emptied into outer ones now and then, so
// that the rounding error grows with the square root of the channel's size at most; joined in a fixed order.
template <class A, class Order, class Term>
SENET_INLINE Vec<A> lane_sums(int64_t n, Term term) {
  constexpr int kLanes = Vec<A>::kLanes;
  constexpr int64_t kStep = 4 * kLanes, kInner = 64 * kStep;
  const auto whole = [](auto* p) { return load<A>(p); };
  const auto two = [](auto* p) { return Order::template load_two<A>(p); };
  const Vec<A> zero = broadcast(A(0));
  Vec<A> outer[4] = {zero, zero, zero, zero};
  int64_t i = 0;
  while (i + kStep <= n) {
    const int64_t last = i + kInner < n ? i + kInner : n;
    Vec<A> a = zero, b = zero, c = zero, d = zero;
    for (; i + kStep <= last; i += kStep) {
      const Two<A> near = term(i, two), far = term(i + 2 * kLanes, two);
      a = a + near.first;
      b = b + near.second;
      c = c + far.first;
      d = d + far.second;
    }
    outer[0] = outer[0] + a;
    outer[1] = outer[1] + b;
    outer[2] = outer[2] + c;
    outer[3] = outer[3] + d;
  }
  for (; i + kLanes <= n; i += kLanes) outer[0] = outer[0] + term(i, whole);
  outer[1] = add_rest<A>(outer[1], i, n, term);
  return (outer[0] + outer[1]) + (outer[2] + outer[3]);
}

// sums[k] += term(k, load), with sums in pairs of vectors as `Order` loads them.
template <class A, class Order, class Term>
SENET_INLINE void add_terms(int64_t K, A* sums, Term term) {
  constexpr int kLanes = Vec<A>::kLanes;
  const auto whole = [](auto* p) { return load<A>(p); };
  int64_t k = 0;
  for (; k + 2 * kLanes <= K; k += 2 * kLanes) {
    const Two<A> total = InOrder::load_two<A>(sums + k) + term(k, [](auto* p) { return Order::template load_two<A>(p); });
    store(total.first, sums + k);
    store(total.second, sums + k + kLanes);
  }
  if (k + kLanes <= K) {
    store(load<A>(sums + k) + term(k, whole), sums + k);
    k += kLanes;
  }
  if (const int64_t rest = K - k; rest > 0) {
    store(load<A>(sums + k, rest) + term(k, [rest](auto* p) { return load<A>(p, rest); }), sums + k, rest);
  }
}

// sums[k] += the terms of `rows` rows from element `at` on; four rows at a time, so that sums pass through L1 once for four.
template <class A, class Order, class Term>
SENET_INLINE void add_rows(int64_t at, int64_t rows, int64_t K, A* sums, Term term) {
  for (; rows >= 4; rows -= 4, at += 4 * K) {
    add_terms<A, Order>(K, sums, [&](int64_t k, auto load) {
      return (term(at + k, load) + term(at + K + k, load)) + (term(at + 2 * K + k, load) + term(at + 3 * K + k, load));
    });
  }
  for (; rows > 0; --rows, at += K) {
    add_terms<A, Order>(K, sums, [&](int64_t k, auto load) { return term(at + k, load); });
  }
}

// sums[k] = sum of the terms of rows [begin, end). Narrow rows are first joined into wide ones that fill vectors.
template <class A, class Order, class Term>
SENET_INLINE void sum_rows(int64_t begin, int64_t end, int64_t K, A* sums, Term term) {
  constexpr int64_t kWide = 128;
  const int64_t joined = kWide / K, wide_rows = joined >= 2 ? (end - begin) / joined : 0;
  for (int64_t k = 0; k < K; ++k) sums[k] = 0;
  add_rows<A, Order>((begin + wide_rows * joined) * K, end - begin - wide_rows * joined, K, sums, term);
  Order::restore(sums, K);
  if (wide_rows == 0) return;
  A wide[kWide] = {};
  add_rows<A, Order>(begin * K, wide_rows, joined * K, wide, term);
  Order::restore(wide, joined * K);
  for (int64_t j = 0; j < joined; ++j) {
    for (int64_t k = 0; k < K; ++k) sums[k] += wide[j * K + k];
  }
}
