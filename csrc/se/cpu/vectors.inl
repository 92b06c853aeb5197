// Loops over arrays in vectors, and the elements left over at their ends. Part of kernels.inl.

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

// Elements from p on to the next vector that lies in one line, or one half of a line.
template <class A, class T>
SENET_INLINE std::int64_t until_aligned(const T* p) {
  constexpr std::uintptr_t kBytes = Vec<A>::kLanes * sizeof(T);
  return static_cast<std::int64_t>(-reinterpret_cast<std::uintptr_t>(p) % kBytes / sizeof(T));
}

// Streaming needs whole lines, which a y that is not even aligned to its elements never reaches.
template <class T>
SENET_INLINE bool aligned_elements(const T* p) {
  return reinterpret_cast<std::uintptr_t>(p) % sizeof(T) == 0;
}

// y[i] = value(i, load) for n elements from the last to the first, past the caches if kStream. y may be what value reads:
// vectors that overlap are computed before one of them is stored. Lines at the ends are shared with other runs; with the
// vectors next to them, which overlap theirs, they are stored as usual: a line both streamed and stored costs most.
template <class A, bool kStream, class T, class Value>
SENET_INLINE void write_vectors(std::int64_t n, T* y, Value value) {
  constexpr int kLanes = Vec<A>::kLanes;
  const auto vector_at = [&](std::int64_t i) { return value(i, [](auto* p) { return load<A>(p); }); };
  const auto store_two = [&](std::int64_t i, std::int64_t j) {
    const Vec<A> first = vector_at(i), second = vector_at(j);
    store(first, y + i);
    store(second, y + j);
  };
  if (n < 2 * kLanes) {
    if (n > kLanes) return store_two(0, n - kLanes);
    return for_vectors<A>(n, [&](std::int64_t i, auto load, auto store) { store(value(i, load), y + i); });
  }
  const std::int64_t to_line = until_aligned<A>(y), head = n - to_line < 2 * kLanes ? 0 : to_line, tail = (n - head) % kLanes;
  const bool streamed = kStream && head == to_line && aligned_elements(y);
  std::int64_t i = n - tail;
  if (tail > 0) {
    i -= kLanes;
    store_two(i, n - kLanes);
  }
  const std::int64_t last = head > 0 ? head + kLanes : 0;
  while (i > last) {
    i -= kLanes;
    streamed ? stream(vector_at(i), y + i) : store(vector_at(i), y + i);
  }
  if (head > 0) store_two(0, head);
}

// The same over channels of I >= kLanes elements each: y[i] = value(i, a, b) with a and b of i's channel. A vector is wholly
// in one channel or across the border of two.
template <class A, bool kStream, class T, class Value>
SENET_INLINE void write_channels(std::int64_t channels, std::int64_t I, const A* a, const A* b, T* y, Value value) {
  constexpr int kLanes = Vec<A>::kLanes;
  const auto across = [&](std::int64_t i, std::int64_t k, std::int64_t in_next) {
    const bool two = in_next > 0;
    return value(i, join(broadcast(a[k]), broadcast(a[k + two]), in_next),
                 join(broadcast(b[k]), broadcast(b[k + two]), in_next));
  };
  const std::int64_t n = channels * I;
  if (n == 0) return;
  const std::int64_t to_line = until_aligned<A>(y), head = n - to_line < kLanes ? 0 : to_line;
  const bool streamed = kStream && head == to_line && aligned_elements(y);
  std::int64_t i = head + (n - head) / kLanes * kLanes, k = (i - 1) / I;
  const Vec<A> front = across(0, 0, 0), back = across(n - kLanes, channels - 1, 0);
  const bool tail = i < n;
  while (i > head) {
    const std::int64_t first = k * I;
    const Vec<A> a_k = broadcast(a[k]), b_k = broadcast(b[k]);
    const std::int64_t least = first > head ? first : head;
    while (i - kLanes >= least) {
      i -= kLanes;
      const Vec<A> v = value(i, a_k, b_k);
      streamed ? stream(v, y + i) : store(v, y + i);
    }
    if (i <= head) break;
    --k;
    if (i == first) continue;
    i -= kLanes;
    const Vec<A> v = across(i, k, i + kLanes - first);
    streamed ? stream(v, y + i) : store(v, y + i);
  }
  if (tail) store(back, y + n - kLanes);
  if (head > 0) store(front, y);
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
