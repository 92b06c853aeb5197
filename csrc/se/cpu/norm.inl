// Kernels of BatchNorm beside SE: its moments, the map that is written, and the same for backward. Part of kernels.inl.

// 0 where y <= 0, as ReLU's derivative has it; a NaN of y lets the gradient through, as in torch.
template <class A>
SENET_INLINE Vec<A> behind_relu(const Vec<A>& grad, const Vec<A>& y) {
  using Ints = typename NativeOf<int>::type;
  Vec<A> v;
  for (int i = 0; i < Vec<A>::kParts; ++i) {
    v.part[i] = (typename Vec<A>::Native)((Ints)grad.part[i] & ~(Ints)(y.part[i] <= typename Vec<A>::Native{}));
  }
  return v;
}

// The sums over n elements of the two vectors that terms(total, i, load) adds to a total.
template <class A, class Terms>
SENET_INLINE void sum_two(int64_t n, A* first, A* second, Terms terms) {
  constexpr int kLanes = Vec<A>::kLanes;
  const auto whole = [](auto* p) { return load<A>(p); };
  const Vec<A> zero = broadcast(A(0));
  Two<A> even{zero, zero}, odd{zero, zero};
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    even = terms(even, i, whole);
    odd = terms(odd, i + kLanes, whole);
  }
  if (i + kLanes <= n) {
    even = terms(even, i, whole);
    i += kLanes;
  }
  if (const int64_t rest = n - i; rest > 0) {  // lanes behind the last element must not count, whatever their terms are
    const Two<A> last = terms(Two<A>{zero, zero}, i, [rest](auto* p) { return load<A>(p, rest); });
    odd = odd + Two<A>{join(last.first, zero, kLanes - rest), join(last.second, zero, kLanes - rest)};
  }
  const Two<A> total = even + odd;
  *first = sum(total.first);
  *second = sum(total.second);
}

// first[k] and second[k] are the sums over rows [0, O) of what terms(total, at, k, load) adds, at being row * K + k. Four rows
// at a time, so that the sums pass through L1 once for four; the order of additions is that of the rows.
template <class A, class Terms>
SENET_INLINE void sum_two_by_rows(const Image& image, int64_t begin, int64_t end, A* first, A* second, Terms terms) {
  const int64_t O = image.O, K = image.K;
  for (int64_t k = begin; k < end; ++k) first[k] = second[k] = 0;
  const auto add = [&]<int... kRow>(int64_t o, std::integer_sequence<int, kRow...>) {
    for_vectors<A>(end - begin, [&](int64_t i, auto load, auto store) {
      const int64_t k = begin + i;
      Two<A> total{load(first + k), load(second + k)};
      ((total = terms(total, (o + kRow) * K + k, k, load)), ...);
      store(total.first, first + k);
      store(total.second, second + k);
    });
  };
  int64_t o = 0;
  for (; o + 4 <= O; o += 4) add(o, std::make_integer_sequence<int, 4>());
  for (; o < O; ++o) add(o, std::make_integer_sequence<int, 1>());
}

template <class A>
struct Norm {
  static void moments(const Image& image, const A* x, A* mean, A* squares, int64_t begin, int64_t end) {
    const A count = A(image.O * image.I);
    if (!image.by_rows()) {
      for (int64_t k = begin; k < end; ++k) {
        const A* p = x + k * image.I;
        mean[k] = sum(lane_sums<A, InOrder>(image.I, [&](int64_t i, auto load) { return load(p + i); })) / count;
        const Vec<A> average = broadcast(mean[k]);
        A left;  // of the distances from the average, which was rounded
        sum_two(image.I, &left, squares + k,
                [&](const Two<A>& total, int64_t i, auto load) { return squared(total, load(p + i) - average); });
        squares[k] -= left / count * left;
      }
      return;
    }
    // distances from the first pixel, so that nothing cancels that need not
    sum_two_by_rows(image, begin, end, mean, squares, [&](const Two<A>& total, int64_t at, int64_t k, auto load) {
      return squared(total, load(x + at) - load(x + k));
    });
    for (int64_t k = begin; k < end; ++k) {
      const A distance = mean[k] / count;
      squares[k] -= distance * mean[k];
      mean[k] = x[k] + distance;
    }
  }

  static void apply(const Image& image, const A* x, const A* mean, const A* scale, const A* shift, const A* residual, A* y,
                    int64_t begin, int64_t end) {
    each(image, begin, end, [&](int64_t at, int64_t k, auto load, auto store, auto number) {
      const Vec<A> z = fma(load(x + at) - number(mean + k), number(scale + k), number(shift + k)) + load(residual + at);
      store(positive(z), y + at);
    });
  }

  static void sums(const Image& image, const A* grad_y, const A* y, const A* x, const A* mean, A* grads, A* products,
                   int64_t begin, int64_t end) {
    const auto terms = [&](const Two<A>& total, int64_t at, const Vec<A>& average, auto load) {
      const Vec<A> grad = behind_relu(load(grad_y + at), load(y + at));
      return Two<A>{total.first + grad, fma(grad, load(x + at) - average, total.second)};
    };
    if (image.by_rows()) {
      sum_two_by_rows(image, begin, end, grads, products, [&](const Two<A>& total, int64_t at, int64_t k, auto load) {
        return terms(total, at, load(mean + k), load);
      });
      return;
    }
    for (int64_t k = begin; k < end; ++k) {
      const Vec<A> average = broadcast(mean[k]);
      sum_two(image.I, grads + k, products + k,
              [&](const Two<A>& total, int64_t i, auto load) { return terms(total, k * image.I + i, average, load); });
    }
  }

  static void gradients(const Image& image, const A* grad_y, const A* y, const A* x, const A* mean, const A* scale,
                        const A* slope, const A* offset, A* grad_x, A* grad_residual, int64_t begin, int64_t end) {
    each(image, begin, end, [&](int64_t at, int64_t k, auto load, auto store, auto number) {
      const Vec<A> grad = behind_relu(load(grad_y + at), load(y + at));
      const Vec<A> rest = fma(load(x + at) - number(mean + k), number(slope + k), number(offset + k));
      store(grad, grad_residual + at);
      store(fma(grad, number(scale + k), rest), grad_x + at);
    });
  }

  static constexpr NormKernels<A> table() { return {moments, apply, sums, gradients}; }

 private:
  static SENET_INLINE Two<A> squared(const Two<A>& total, const Vec<A>& distance) {
    return {total.first + distance, fma(distance, distance, total.second)};
  }

  // body(at, k, load, store, number) over the elements of the units; number(p) is what p, a pointer to channel k of [K]
  // numbers, holds for them.
  template <class Body>
  static SENET_INLINE void each(const Image& image, int64_t begin, int64_t end, Body body) {
    const int64_t width = image.by_rows() ? image.K : image.I;
    for (int64_t unit = begin; unit < end; ++unit) {
      if (image.by_rows()) {
        map_vectors<A>(width, [&](int64_t i, auto load, auto store) { body(unit * width + i, i, load, store, load); });
      } else {
        map_vectors<A>(width, [&](int64_t i, auto load, auto store) {
          body(unit * width + i, unit, load, store, [](const A* p) { return broadcast(*p); });
        });
      }
    }
  }
};
