// Kernels over x, y and their gradients: squeeze, scale, and what backward needs of them. Part of kernels.inl.

constexpr int64_t kChunk = 256;  // elements that pass through a float buffer in L1 where an activation follows

template <class A, bool kRow>
SENET_INLINE Vec<A> scale_at(const A* scale, int64_t i, auto load) {
  if constexpr (kRow) {
    return load(scale + i);
  } else {
    return broadcast(*scale);
  }
}

template <class A, class T, bool kRow>
SENET_INLINE void scale_segment(const T* x, const A* scale, const T* residual, const Activation& activation, T* y, int64_t n) {
  if (residual == nullptr && activation.is_identity()) {
    map_vectors<A>(n, [&](int64_t i, auto load, auto store) { store(load(x + i) * scale_at<A, kRow>(scale, i, load), y + i); });
    return;
  }
  for (int64_t from = 0; from < n; from += kChunk) {
    const int64_t count = n - from < kChunk ? n - from : kChunk;
    A v[kChunk];
    map_vectors<A>(count, [&](int64_t i, auto load, auto store) {
      Vec<A> scaled = load(x + from + i) * scale_at<A, kRow>(scale, from + i, load);
      if (residual != nullptr) scaled = scaled + load(residual + from + i);
      store(scaled, v + i);
    });
    activation_value(activation, v, v, count);
    map_vectors<A>(count, [&](int64_t i, auto load, auto store) { store(load(v + i), y + from + i); });
  }
}

// grad_v of up to kChunk elements, as A
template <class A, class T, bool kRow>
SENET_INLINE void grad_chunk(const T* grad_y, const T* x, const A* scale, const T* residual, const Activation& activation,
                             T* grad_v, A* v, int64_t n) {
  if (n <= 0) return;
  A dy[kChunk];
  map_vectors<A>(n, [&](int64_t i, auto load, auto store) {
    Vec<A> scaled = load(x + i) * scale_at<A, kRow>(scale, i, load);
    if (residual != nullptr) scaled = scaled + load(residual + i);
    store(scaled, v + i);
    store(load(grad_y + i), dy + i);
  });
  activation_grad(activation, v, dy, v, n);
  map_vectors<A>(n, [&](int64_t i, auto load, auto store) { store(load(v + i), grad_v + i); });
}

// The sum over a channel: four accumulators, so that additions overlap, emptied into outer ones now and then, so that the
// rounding error grows with the square root of the channel's size at most; joined in a fixed order.
template <class A, class Term>
SENET_INLINE A sum_terms(int64_t n, Term term) {
  constexpr int kLanes = Vec<A>::kLanes;
  constexpr int64_t kStep = 4 * kLanes, kInner = 64 * kStep;
  const auto whole = [](auto* p) { return load<A>(p); };
  const Vec<A> zero = broadcast(A(0));
  Vec<A> outer[4] = {zero, zero, zero, zero};
  int64_t i = 0;
  while (i + kStep <= n) {
    const int64_t last = i + kInner < n ? i + kInner : n;
    Vec<A> a = zero, b = zero, c = zero, d = zero;
    for (; i + kStep <= last; i += kStep) {
      a = a + term(i, whole);
      b = b + term(i + kLanes, whole);
      c = c + term(i + 2 * kLanes, whole);
      d = d + term(i + 3 * kLanes, whole);
    }
    outer[0] = outer[0] + a;
    outer[1] = outer[1] + b;
    outer[2] = outer[2] + c;
    outer[3] = outer[3] + d;
  }
  for (; i + kLanes <= n; i += kLanes) outer[0] = outer[0] + term(i, whole);
  outer[1] = add_rest<A>(outer[1], i, n, term);
  return sum((outer[0] + outer[1]) + (outer[2] + outer[3]));
}

// sums[k] += term(k, load)
template <class A, class Term>
SENET_INLINE void add_terms(int64_t K, A* sums, Term term) {
  constexpr int kLanes = Vec<A>::kLanes;
  const auto whole = [](auto* p) { return load<A>(p); };
  int64_t k = 0;
  for (; k + kLanes <= K; k += kLanes) store(load<A>(sums + k) + term(k, whole), sums + k);
  const int64_t rest = K - k;
  if (rest == 0) return;
  if (K >= kLanes) {
    k = K - kLanes;
    store(load<A>(sums + k) + keep_last(term(k, whole), rest), sums + k);
  } else {
    store(load<A>(sums, rest) + term(0, [rest](auto* p) { return load<A>(p, rest); }), sums, rest);
  }
}

// sums[k] += terms of rows [begin, end); rows are added four at a time, so that sums pass through L1 once for four.
template <class A, class Term>
SENET_INLINE void sum_rows(int64_t begin, int64_t end, int64_t K, A* sums, Term term) {
  int64_t o = begin;
  for (; o + 4 <= end; o += 4) {
    add_terms<A>(K, sums, [&](int64_t k, auto load) {
      return (term(o, k, load) + term(o + 1, k, load)) + (term(o + 2, k, load) + term(o + 3, k, load));
    });
  }
  for (; o < end; ++o) {
    add_terms<A>(K, sums, [&](int64_t k, auto load) { return term(o, k, load); });
  }
}

template <class A, class T>
struct Data {
  static void squeeze(const Image& image, const void* x_, int64_t begin, int64_t end, A* sums) {
    const T* x = static_cast<const T*>(x_);
    const auto [O, K, I] = image;
    if (image.by_rows()) {
      for (int64_t k = 0; k < K; ++k) sums[k] = 0;
      sum_rows(begin, end, K, sums, [&](int64_t o, int64_t k, auto load) { return load(x + o * K + k); });
      return;
    }
    if (I < kFew) {
      sum_groups(image, begin, end, sums, [&](int64_t, int64_t at, int64_t n, A* terms) {
        map_vectors<A>(n, [&](int64_t i, auto load, auto store) { store(load(x + at + i), terms + i); });
      });
      return;
    }
    for (int64_t k = begin; k < end; ++k) {
      double total = 0;
      for (int64_t o = 0; o < O; ++o) {
        const T* segment = x + (o * K + k) * I;
        total += sum_terms<A>(I, [&](int64_t i, auto load) { return load(segment + i); });
      }
      sums[k] = A(total);
    }
  }

  static void scale(const Image& image, const void* x_, const A* scale, const void* residual_, const Activation& activation,
                    void* y_, int64_t begin, int64_t end) {
    const T *x = static_cast<const T*>(x_), *residual = static_cast<const T*>(residual_);
    T* y = static_cast<T*>(y_);
    for_segments(image, begin, end, scale, scale, [&](int64_t at, int64_t n, const A* scale_at, const A*, auto row) {
      scale_segment<A, T, row.value>(x + at, scale_at, residual ? residual + at : nullptr, activation, y + at, n);
    });
  }

  static void grad_scale(const Image& image, const void* grad_y_, const void* x_, const A* scale, const void* residual_,
                         const Activation& activation, void* grad_v_, int64_t begin, int64_t end, A* sums) {
    const T *dy = static_cast<const T*>(grad_y_), *x = static_cast<const T*>(x_), *residual = static_cast<const T*>(residual_);
    T* dv = static_cast<T*>(grad_v_);
    const int64_t K = image.K;
    if (image.by_rows()) {
      for (int64_t k = 0; k < K; ++k) sums[k] = 0;
      if (activation.is_identity()) {
        const auto term = [&](int64_t o, int64_t k, auto load) { return load(dy + o * K + k) * load(x + o * K + k); };
        sum_rows(begin, end, K, sums, term);
        return;
      }
      for (int64_t o = begin; o < end; ++o) {
        activated_segment<true>(dy, x, scale, residual, activation, dv, o * K, K,
                                [&](int64_t from, int64_t count, auto term) { add_terms<A>(count, sums + from, term); });
      }
      return;
    }
    if (image.I < kFew) {
      sum_groups(image, begin, end, sums, [&](int64_t k, int64_t at, int64_t n, A* terms) {
        if (activation.is_identity()) {
          map_vectors<A>(n, [&](int64_t i, auto load, auto store) { store(load(dy + at + i) * load(x + at + i), terms + i); });
          return;
        }
        A spread_scale[kChunk], v[kChunk];
        spread(scale + k, n, image.I, spread_scale);
        grad_chunk<A, T, true>(dy + at, x + at, spread_scale, residual ? residual + at : nullptr, activation, dv + at, v, n);
        map_vectors<A>(n, [&](int64_t i, auto load, auto store) { store(load(v + i) * load(x + at + i), terms + i); });
      });
      return;
    }
    for (int64_t k = begin; k < end; ++k) {
      double total = 0;
      for (int64_t o = 0; o < image.O; ++o) {
        const int64_t at = (o * K + k) * image.I;
        if (activation.is_identity()) {
          total += sum_terms<A>(image.I, [&](int64_t i, auto load) { return load(dy + at + i) * load(x + at + i); });
        } else {
          activated_segment<false>(dy, x, scale + k, residual, activation, dv, at, image.I,
                                   [&](int64_t, int64_t count, auto term) { total += sum_terms<A>(count, term); });
        }
      }
      sums[k] = A(total);
    }
  }

  static void grad_x(const Image& image, const void* grad_v_, const A* scale, const A* shift, void* grad_x_, int64_t begin,
                     int64_t end) {
    const T* dv = static_cast<const T*>(grad_v_);
    T* dx = static_cast<T*>(grad_x_);
    for_segments(image, begin, end, scale, shift, [&](int64_t at, int64_t n, const A* a, const A* b, auto row) {
      map_vectors<A>(n, [&](int64_t i, auto load, auto store) {
        store(load(dv + at + i) * scale_at<A, row.value>(a, i, load) + scale_at<A, row.value>(b, i, load), dx + at + i);
      });
    });
  }

  static constexpr DataKernels<A> table() { return {squeeze, scale, grad_scale, grad_x}; }

 private:
  // grad_v of the n elements from `at` on, in chunks, each then given to add(from, count, term) as terms grad_v * x.
  template <bool kRow, class Add>
  static SENET_INLINE void activated_segment(const T* dy, const T* x, const A* scale, const T* residual,
                                             const Activation& activation, T* dv, int64_t at, int64_t n, Add add) {
    for (int64_t from = 0; from < n; from += kChunk) {
      const int64_t count = n - from < kChunk ? n - from : kChunk;
      const T* x_at = x + at + from;
      A v[kChunk];
      grad_chunk<A, T, kRow>(dy + at + from, x_at, kRow ? scale + from : scale, residual ? residual + at + from : nullptr,
                             activation, dv + at + from, v, count);
      add(from, count, [&](int64_t i, auto load) { return load(v + i) * load(x_at + i); });
    }
  }

  template <bool kValue>
  struct Constant {
    static constexpr bool value = kValue;
  };

  // Channels of fewer elements than a vector has lanes are taken in groups that fill a chunk.
  static constexpr int64_t kFew = Vec<A>::kLanes;

  // per_channel[j] for each of the n elements of channels j of I elements
  static void spread(const A* per_channel, int64_t n, int64_t I, A* out) {
    for (int64_t i = 0; i < n; i += I, ++per_channel) {
      for (int64_t j = 0; j < I; ++j) out[i + j] = *per_channel;
    }
  }

  // body(k, count) for groups of `count` channels from k on
  template <class Body>
  static SENET_INLINE void for_groups(const Image& image, int64_t begin, int64_t end, Body body) {
    const int64_t group = image.I > 0 ? kChunk / image.I : kChunk;
    for (int64_t k = begin; k < end; k += group) body(k, end - k < group ? end - k : group);
  }

  // sums[k] of the terms that fill(k, at, n, terms) writes for the n elements from `at` on, those of whole channels
  template <class Fill>
  static SENET_INLINE void sum_groups(const Image& image, int64_t begin, int64_t end, A* sums, Fill fill) {
    const auto [O, K, I] = image;
    for_groups(image, begin, end, [&](int64_t k, int64_t count) {
      double totals[kChunk] = {};
      A terms[kChunk];
      for (int64_t o = 0; o < O; ++o) {
        fill(k, (o * K + k) * I, count * I, terms);
        for (int64_t j = 0; j < count; ++j) {
          for (int64_t i = 0; i < I; ++i) totals[j] += terms[j * I + i];
        }
      }
      for (int64_t j = 0; j < count; ++j) sums[k + j] = A(totals[j]);
    });
  }

  // body(at, n, a, b, row): a contiguous run of n elements from `at` on, with what `scale` and `shift` hold for them; row
  // says whether that is a number for each element or one for all.
  template <class Body>
  static SENET_INLINE void for_segments(const Image& image, int64_t begin, int64_t end, const A* scale, const A* shift,
                                        Body body) {
    const auto [O, K, I] = image;
    if (image.by_rows()) {
      for (int64_t o = begin; o < end; ++o) body(o * K, K, scale, shift, Constant<true>{});
    } else if (I < kFew) {
      for_groups(image, begin, end, [&](int64_t k, int64_t count) {
        A a[kChunk], b[kChunk];
        spread(scale + k, count * I, I, a);
        spread(shift + k, count * I, I, b);
        for (int64_t o = 0; o < O; ++o) body((o * K + k) * I, count * I, a, b, Constant<true>{});
      });
    } else {
      for (int64_t o = 0; o < O; ++o) {
        for (int64_t k = begin; k < end; ++k) body((o * K + k) * I, I, scale + k, shift + k, Constant<false>{});
      }
    }
  }
};
