// The bulk writer, once per instruction set. Expects SENET_IDS_TARGET (a function attribute, or nothing),
// SENET_IDS_VECTOR (a type of 64-bit lanes) and SENET_IDS_STREAM(address, vector), a store that bypasses the caches;
// the including file opens a namespace around it.

template <bool kStream>
SENET_IDS_TARGET inline void write_run_with(int64_t* out, uint64_t n, int64_t first, int64_t step) {
  using Vector = SENET_IDS_VECTOR;
  constexpr uint64_t kLanes = sizeof(Vector) / 8;
  // Four vectors in flight: with one, each store waits for the addition before it.
  constexpr uint64_t kUnroll = 4;
  for (; n && reinterpret_cast<uintptr_t>(out) % sizeof(Vector); n--, first += step) *out++ = first;
  if (n >= kUnroll * kLanes) {
    Vector ids[kUnroll];
    for (uint64_t i = 0; i < kUnroll * kLanes; i++) ids[i / kLanes][i % kLanes] = first + static_cast<int64_t>(i) * step;
    const int64_t stride = static_cast<int64_t>(kUnroll * kLanes) * step;
    for (; n >= kUnroll * kLanes; n -= kUnroll * kLanes, out += kUnroll * kLanes, first += stride) {
      for (uint64_t u = 0; u < kUnroll; u++) {
        auto* address = reinterpret_cast<Vector*>(out) + u;
        if (kStream) {
          SENET_IDS_STREAM(address, ids[u]);
        } else {
          *address = ids[u];
        }
        ids[u] += stride;
      }
    }
  }
  for (; n; n--, first += step) *out++ = first;
}

SENET_IDS_TARGET inline void write_run(int64_t* out, uint64_t n, int64_t first, int64_t step, bool stream) {
  if (stream) {
    write_run_with<true>(out, n, first, step);
  } else {
    write_run_with<false>(out, n, first, step);
  }
}

#undef SENET_IDS_TARGET
#undef SENET_IDS_VECTOR
#undef SENET_IDS_STREAM
