// write_run(out, n, first, step, stream): out[i] = first + i * step, at the speed of memset. The widest instruction
// set of this CPU is chosen once, when the library is loaded.
#pragma once

#include <cstdint>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "snowflake.h"

namespace senet::ids {

// Arrays from this many IDs up (64 MiB) are written past the caches (`stream`): they would not stay there, and the
// old lines need not be read first. Below it, that is slower by 2x.
constexpr uint64_t kStreamFrom = uint64_t{1} << 23;

template <int kBytes>
struct Lanes {
  typedef int64_t Vector __attribute__((vector_size(kBytes), may_alias));
};

namespace baseline {
#define SENET_IDS_TARGET
#define SENET_IDS_VECTOR Lanes<16>::Vector
#if defined(__x86_64__)
#define SENET_IDS_STREAM(address, ids) _mm_stream_si128(reinterpret_cast<__m128i*>(address), reinterpret_cast<__m128i>(ids))
#else
#define SENET_IDS_STREAM(address, ids) (*(address) = (ids))
#endif
#include "write_run.inl"
}  // namespace baseline

#if defined(__x86_64__)

namespace avx2 {
#define SENET_IDS_TARGET __attribute__((target("avx2")))
#define SENET_IDS_VECTOR Lanes<32>::Vector
#define SENET_IDS_STREAM(address, ids) _mm256_stream_si256(reinterpret_cast<__m256i*>(address), reinterpret_cast<__m256i>(ids))
#include "write_run.inl"
}  // namespace avx2

namespace avx512 {
#define SENET_IDS_TARGET __attribute__((target("avx512f")))
#define SENET_IDS_VECTOR Lanes<64>::Vector
#define SENET_IDS_STREAM(address, ids) _mm512_stream_si512(reinterpret_cast<__m512i*>(address), reinterpret_cast<__m512i>(ids))
#include "write_run.inl"
}  // namespace avx512

#endif

using WriteRun = void (*)(int64_t* out, uint64_t n, int64_t first, int64_t step, bool stream);

inline WriteRun select_write_run() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f")) return avx512::write_run;
  if (__builtin_cpu_supports("avx2")) return avx2::write_run;
#endif
  return baseline::write_run;
}

inline const WriteRun selected_write_run = select_write_run();

inline void write_run(int64_t* out, uint64_t n, int64_t first, int64_t step, bool stream) {
  selected_write_run(out, n, first, step, stream);
#if defined(__x86_64__)
  if (stream) _mm_sfence();  // streamed stores keep no order with later ones, by which another thread learns of them
#endif
}

// `count` consecutive words of a claim, as IDs.
inline void write_words(const Generator& generator, int64_t* out, uint64_t first, uint64_t count, bool stream) {
  while (count) {
    const uint64_t n = within_tick(generator, first, count);
    write_run(out, n, id_of(generator, first), id_step(generator), stream);
    out += n, first += n, count -= n;
  }
}

}  // namespace senet::ids
