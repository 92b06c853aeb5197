// Kernels over x, y and their gradients: squeeze, scale, and what backward needs of them. Part of kernels.inl.

constexpr int64_t kChunk = 256;   // elements that pass through a float buffer in L1 where an activation follows
constexpr int64_t kGroup = 1024;  // elements of short channels that are scaled in one run

template <class A, bool kRow>
SENET_INLINE Vec<A> scale_at(const A* scale, int64_t i, auto load) {
  if constexpr (kRow) {
    return load(scale + i);
  } else {
    return broadcast(*scale);
  }
}

// Elements of v, of which there are n, with zeros up to a whole vector: what the compiler makes of a loop has no quick end.
template <class A>
SENET_INLINE int64_t whole_vectors(int64_t n, A* v) {
  store(broadcast(A(0)), v + n);
  return (n + Vec<A>::kLanes - 1) / Vec<A>::kLanes * Vec<A>::kLanes;
}

// y[i] = activation(value(i, load)) for an activation that is computed over arrays
template <class A, class T, class Value>
SENET_INLINE void activate_segment(const Activation& activation, T* y, int64_t n, Value value) {
  for (int64_t from = 0; from < n; from += kChunk) {
    const int64_t count = n - from < kChunk ? n - from : kChunk;
    A v[kChunk + Vec<A>::kLanes];
    map_vectors<A>(count, [&](int64_t i, auto load, auto store) { store(value(from + i, load), v + i); });
    activation_value(activation, v, v, whole_vectors<A>(count, v));
    map_vectors<A>(count, [&](int64_t i, auto load, auto store) { store(load(v + i), y + from + i); });
  }
}

// grad_v of up to kChunk elements, as A; v has room for a vector more
template <class A, class T, bool kRow>
SENET_INLINE void grad_chunk(const T* grad_y, const T* x, const A* scale, const T* residual, bool from_y,
                             const Activation& activation, T* grad_v, A* v, int64_t n) {
  if (n <= 0) return;
  A dy[kChunk + Vec<A>::kLanes];
  map_vectors<A>(n, [&](int64_t i, auto load, auto store) { store(load(grad_y + i), dy + i); });
  map_vectors<A>(n, [&](int64_t i, auto load, auto store) {
    if (from_y) return store(load(residual + i), v + i);
    Vec<A> scaled = load(x + i) * scale_at<A, kRow>(scale, i, load);
    if (residual != nullptr) scaled = scaled + load(residual + i);
    store(scaled, v + i);
  });
  whole_vectors<A>(n, dy);
  activation_grad(activation, v, dy, v, whole_vectors<A>(n, v));
  map_vectors<A>(n, [&](int64_t i, auto load, auto store) { store(load(v + i), grad_v + i); });
}

template <class A, class T>
struct Data {
  using Order = typename OrderOf<T>::type;

  static void squeeze(const Image& image, const void* x_, int64_t begin, int64_t end, A* sums) {
    const T* x = static_cast<const T*>(x_);
    const auto [O, K, I] = image;
    if (image.by_rows()) {
      sum_rows<A, Order>(begin, end, K, sums, [&](int64_t at, auto load) { return load(x + at); });
      return;
    }
    if (I < kFew) {
      sum_groups(image, begin, end, sums, [&](int64_t, int64_t, int64_t at, int64_t n, A* terms) {
        map_vectors<A>(n, [&](int64_t i, auto load, auto store) { store(load(x + at + i), terms + i); });
      });
      return;
    }
    sum_channels(image, begin, end, sums,
                 [&](int64_t at) { return lane_sums<A, Order>(I, [&](int64_t i, auto load) { return load(x + at + i); }); });
  }

  static void prologue(const Image& image, const void* x_, const A* scale, const A* shift, const Activation& activation,
                       void* u_, int64_t begin, int64_t end) {
    const T* x = static_cast<const T*>(x_);
    T* u = static_cast<T*>(u_);
    const auto value = [&](int64_t at, auto load, const Vec<A>& a, const Vec<A>& b) { return load(x + at) * a + b; };
    write_activated(image, begin, end, scale, shift, activation, u, false, value);
  }

  static void scale(const Image& image, const void* x, const A* scale, const void* residual, const Activation& activation,
                    void* y, bool stream, int64_t begin, int64_t end) {
    write_scaled<false>(image, x, scale, residual, activation, y, stream, x, begin, end);
    if (stream) fence();
  }

  // By turns, in pieces that stay in L1: while one is scaled, the next to be squeezed is prefetched.
  static void scale_squeeze(const Image& image, const void* x, const A* scale, const void* residual,
                            const Activation& activation, void* y, bool stream, const void* next, int64_t begin, int64_t end,
                            A* sums) {
    const auto write = [&](int64_t first, int64_t last, const T* ahead) {
      write_scaled<kCopies>(image, x, scale, residual, activation, y, stream, ahead, first, last);
    };
    if (image.by_rows()) {
      squeeze(image, next, begin, end, sums);
      write(begin, end, static_cast<const T*>(next) + (end - begin) * image.K);
    } else {
      constexpr int64_t kPiece = 16384, kLine = 64;
      const int64_t bytes = image.O * image.I * int64_t(sizeof(T));
      // channels of whole lines, or so many that they are together
      const int64_t whole = bytes % kLine == 0 ? 1 : kLine / int64_t(sizeof(T));
      const int64_t step = bytes >= kPiece ? whole : (kPiece / (bytes + 1) + whole) / whole * whole;
      for (int64_t first = begin; first < end; first += step) {
        const int64_t last = end - first < step ? end : first + step;
        squeeze(image, next, first, last, sums);
        write(first, last, static_cast<const T*>(next) + step * image.I);
      }
    }
    if (stream) fence();
  }

  static void grad_scale(const Image& image, const void* grad_y_, const void* x_, const A* scale, const void* residual_,
                         bool from_y, const Activation& activation, void* grad_v_, int64_t begin, int64_t end, A* sums) {
    const T *dy = static_cast<const T*>(grad_y_), *x = static_cast<const T*>(x_), *residual = static_cast<const T*>(residual_);
    T* dv = static_cast<T*>(grad_v_);
    const int64_t K = image.K;
    if (image.by_rows()) {
      if (activation.is_identity()) {
        sum_rows<A, Order>(begin, end, K, sums, [&](int64_t at, auto load) { return load(dy + at) * load(x + at); });
        return;
      }
      for (int64_t k = 0; k < K; ++k) sums[k] = 0;
      for (int64_t o = begin; o < end; ++o) {
        activated_segment<true>(
            dy, x, scale, residual, from_y, activation, dv, o * K, K,
            [&](int64_t from, int64_t count, auto term) { add_terms<A, InOrder>(count, sums + from, term); });
      }
      return;
    }
    if (image.I < kFew) {
      sum_groups(image, begin, end, sums, [&](int64_t k, int64_t count, int64_t at, int64_t n, A* terms) {
        if (activation.is_identity()) {
          map_vectors<A>(n, [&](int64_t i, auto load, auto store) { store(load(dy + at + i) * load(x + at + i), terms + i); });
          return;
        }
        A spread_scale[kChunk + kFew], v[kChunk + kFew];
        spread(scale + k, count, image.I, spread_scale);
        grad_chunk<A, T, true>(dy + at, x + at, spread_scale, residual ? residual + at : nullptr, from_y, activation, dv + at,
                               v, n);
        map_vectors<A>(n, [&](int64_t i, auto load, auto store) { store(load(v + i) * load(x + at + i), terms + i); });
      });
      return;
    }
    if (activation.is_identity()) {
      sum_channels(image, begin, end, sums, [&](int64_t at) {
        return lane_sums<A, Order>(image.I, [&](int64_t i, auto load) { return load(dy + at + i) * load(x + at + i); });
      });
      return;
    }
    for (int64_t k = begin; k < end; ++k) {
      double total = 0;
      for (int64_t o = 0; o < image.O; ++o) {
        activated_segment<false>(dy, x, scale + k, residual, from_y, activation, dv, (o * K + k) * image.I, image.I,
                                 [&](int64_t, int64_t count, auto term) { total += sum(lane_sums<A, InOrder>(count, term)); });
      }
      sums[k] = A(total);
    }
  }

  static void grad_x(const Image& image, const void* grad_v_, const A* scale, const A* shift, void* grad_x_, bool stream,
                     int64_t begin, int64_t end) {
    const T* dv = static_cast<const T*>(grad_v_);
    write_image(image, begin, end, scale, shift, static_cast<T*>(grad_x_), stream,
                [&](int64_t at, auto load, const Vec<A>& a, const Vec<A>& b) { return load(dv + at) * a + b; });
    if (stream) fence();
  }

  static constexpr DataKernels<A> table() { return {squeeze, prologue, scale, scale_squeeze, grad_scale, grad_x}; }

 private:
  // kAhead: the elements of `ahead` at the same places are prefetched on the way.
  template <bool kAhead>
  static void write_scaled(const Image& image, const void* x_, const A* scale, const void* residual_,
                           const Activation& activation, void* y_, bool stream, const void* ahead_, int64_t begin,
                           int64_t end) {
    const T *x = static_cast<const T*>(x_), *residual = static_cast<const T*>(residual_);
    [[maybe_unused]] const T* ahead = static_cast<const T*>(ahead_);
    T* y = static_cast<T*>(y_);
    const auto scaled = [&](int64_t at, auto load, const Vec<A>& s, const Vec<A>&) {
      if constexpr (kAhead) __builtin_prefetch(ahead + at);
      return load(x + at) * s;
    };
    const auto added = [&](int64_t at, auto load, const Vec<A>& s, const Vec<A>&) {
      if constexpr (kAhead) __builtin_prefetch(ahead + at);
      return load(x + at) * s + load(residual + at);
    };
    if (residual == nullptr) {
      write_activated(image, begin, end, scale, scale, activation, y, stream, scaled);
    } else {
      write_activated(image, begin, end, scale, scale, activation, y, stream, added);
    }
  }

  // grad_v of the n elements from `at` on, in chunks, each then given to add(from, count, term) as terms grad_v * x.
  template <bool kRow, class Add>
  static SENET_INLINE void activated_segment(const T* dy, const T* x, const A* scale, const T* residual, bool from_y,
                                             const Activation& activation, T* dv, int64_t at, int64_t n, Add add) {
    for (int64_t from = 0; from < n; from += kChunk) {
      const int64_t count = n - from < kChunk ? n - from : kChunk;
      const T* x_at = x + at + from;
      A v[kChunk + kFew];
      grad_chunk<A, T, kRow>(dy + at + from, x_at, kRow ? scale + from : scale, residual ? residual + at + from : nullptr,
                             from_y, activation, dv + at + from, v, count);
      add(from, count, [&](int64_t i, auto load) { return load(v + i) * load(x_at + i); });
    }
  }

  template <bool kValue>
  struct Constant {
    static constexpr bool value = kValue;
  };

  // sums[k] = the sum over o of the lanes of segment_sums(at), the segment (o, k) that begins at element `at`
  template <class SegmentSums>
  static SENET_INLINE void sum_channels(const Image& image, int64_t begin, int64_t end, A* sums, SegmentSums segment_sums) {
    constexpr int kTogether = Vec<A>::kWidth;
    const auto [O, K, I] = image;
    int64_t k = begin;
    for (; O == 1 && k + kTogether <= end; k += kTogether) {
      Vec<A> lanes[kTogether];
      for (int j = 0; j < kTogether; ++j) lanes[j] = segment_sums((k + j) * I);
      sum_each<A, kTogether>(lanes, sums + k);
    }
    for (; k < end; ++k) {
      double total = 0;
      for (int64_t o = 0; o < O; ++o) total += sum(segment_sums((o * K + k) * I));
      sums[k] = A(total);
    }
  }

  // Channels of fewer elements than a vector has lanes are squeezed in groups that fill a chunk.
  static constexpr int64_t kFew = Vec<A>::kLanes;

  // out[j * I + i] = per_channel[j] for count channels of I elements; writes up to a vector behind them
  static SENET_INLINE void spread(const A* per_channel, int64_t count, int64_t I, A* out) {
    for (int64_t j = 0; j < count; ++j) {
      const Vec<A> value = broadcast(per_channel[j]);
      for (int64_t i = 0; i < I; i += Vec<A>::kLanes) store(value, out + j * I + i);
    }
  }
  // out[j * K + k] = row[k] for count rows
  static SENET_INLINE void repeat(const A* row, int64_t count, int64_t K, A* out) {
    for (int64_t j = 0; j < count; ++j) copy(row, out + j * K, K);
  }

  // sums[k] of the terms that fill(k, count, at, n, terms) writes for the n elements from `at` on, those of count channels
  template <class Fill>
  static SENET_INLINE void sum_groups(const Image& image, int64_t begin, int64_t end, A* sums, Fill fill) {
    const auto [O, K, I] = image;
    const int64_t group = I > 0 ? kChunk / I : kChunk;
    for (int64_t k = begin; k < end; k += group) {
      const int64_t count = end - k < group ? end - k : group;
      double totals[kChunk] = {};
      A terms[kChunk];
      for (int64_t o = 0; o < O; ++o) {
        fill(k, count, (o * K + k) * I, count * I, terms);
        for (int64_t j = 0; j < count; ++j) {
          for (int64_t i = 0; i < I; ++i) totals[j] += terms[j * I + i];
        }
      }
      for (int64_t j = 0; j < count; ++j) sums[k + j] = A(totals[j]);
    }
  }

  // y[at] = value(at, load, a, b) over the units, with what `scale` and `shift` hold for the elements of the vector at `at`.
  // From the last element to the first: the sums were taken in the other direction, and what they read last is still in the
  // cache (x of 6 MB on 4 MB of L2: 1.1x faster). stream: past the caches, no line of y being read before it is written; the
  // caller then fences.
  template <class Value>
  static SENET_INLINE void write_image(const Image& image, int64_t begin, int64_t end, const A* scale, const A* shift, T* y,
                                       bool stream, Value value) {
    if (kCopies && stream) {
      write_units<kCopies>(image, begin, end, scale, shift, y, value);
    } else {
      write_units<false>(image, begin, end, scale, shift, y, value);
    }
  }
  // y[at] = activation(value(at, load, a, b)). An activation that is no vector operation has its values go through a chunk
  // in L1, and its output never past the caches: it is slower than memory anyway.
  template <class Value>
  static SENET_INLINE void write_activated(const Image& image, int64_t begin, int64_t end, const A* scale, const A* shift,
                                           const Activation& activation, T* y, bool stream, Value value) {
    if (activation.is_identity()) return write_image(image, begin, end, scale, shift, y, stream, value);
    if (activation.kind == ActivationKind::relu) {
      const auto relu = [&](int64_t at, auto load, const Vec<A>& a, const Vec<A>& b) {
        return positive(value(at, load, a, b));
      };
      return write_image(image, begin, end, scale, shift, y, stream, relu);
    }
    const auto [O, K, I] = image;
    if (!image.by_rows() && I > 0 && I <= kChunk / 2) {  // a chunk of channels
      A a[kChunk + kFew], b[kChunk + kFew];
      for (int64_t k = begin; k < end; k += kChunk / I) {
        const int64_t count = end - k < kChunk / I ? end - k : kChunk / I;
        spread(scale + k, count, I, a);
        spread(shift + k, count, I, b);
        for (int64_t o = 0; o < O; ++o) {
          const int64_t at = (o * K + k) * I;
          activate_segment<A>(activation, y + at, count * I,
                              [&](int64_t i, auto load) { return value(at + i, load, load(a + i), load(b + i)); });
        }
      }
      return;
    }
    for_segments(image, begin, end, scale, shift, [&](int64_t at, int64_t n, const A* a, const A* b, auto row) {
      activate_segment<A>(activation, y + at, n, [&](int64_t i, auto load) {
        return value(at + i, load, scale_at<A, row.value>(a, i, load), scale_at<A, row.value>(b, i, load));
      });
    });
  }
  template <bool kStream, class Value>
  static SENET_INLINE void write_units(const Image& image, int64_t begin, int64_t end, const A* scale, const A* shift, T* y,
                                       Value value) {
    const auto [O, K, I] = image;
    const auto write_run = [&](int64_t at, int64_t n, const A* a, const A* b) {
      write_vectors<A, kStream>(n, y + at, [&](int64_t i, auto load) { return value(at + i, load, load(a + i), load(b + i)); });
    };
    if (!image.by_rows() && I >= kFew) {
      constexpr auto whole = [](auto* p) { return load<A>(p); };
      for (int64_t o = O; o-- > 0;) {
        const int64_t at = (o * K + begin) * I;
        write_channels<A, kStream>(end - begin, I, scale + begin, shift + begin, y + at,
                                   [&](int64_t i, const Vec<A>& a, const Vec<A>& b) { return value(at + i, whole, a, b); });
      }
      return;
    }
    // short channels and rows are joined into runs; only `count` of the last, that is first, run differs
    const int64_t length = image.by_rows() ? K : I, group = length > 0 && 2 * length <= kGroup ? kGroup / length : 1;
    A a[kGroup + kFew], b[kGroup + kFew];
    for (int64_t last = end; last > begin;) {
      const int64_t first = last - begin > group ? last - group : begin, count = last - first;
      if (!image.by_rows()) {
        spread(scale + first, count, I, a);
        spread(shift + first, count, I, b);
        for (int64_t o = O; o-- > 0;) write_run((o * K + first) * I, count * I, a, b);
      } else if (group == 1) {
        write_run(first * K, K, scale, shift);
      } else {
        if (last == end) {
          repeat(scale, count, K, a);
          repeat(shift, count, K, b);
        }
        write_run(first * K, count * K, a, b);
      }
      last = first;
    }
  }

  // body(at, n, a, b, row): a contiguous run of n elements from `at` on, with what `scale` and `shift` hold for them; row
  // says whether that is a number for each element or one for all.
  template <class Body>
  static SENET_INLINE void for_segments(const Image& image, int64_t begin, int64_t end, const A* scale, const A* shift,
                                        Body body) {
    const auto [O, K, I] = image;
    if (image.by_rows()) {
      for (int64_t o = begin; o < end; ++o) body(o * K, K, scale, shift, Constant<true>{});
      return;
    }
    for (int64_t o = 0; o < O; ++o) {
      for (int64_t k = begin; k < end; ++k) body((o * K + k) * I, I, scale + k, shift + k, Constant<false>{});
    }
  }
};
