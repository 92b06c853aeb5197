#include "se/cpu/machine.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <algorithm>

#include "system.h"

namespace senet {
namespace {

bool is_amd() {
#if defined(__x86_64__)
  return __builtin_cpu_is("amd");
#else
  return false;
#endif
}

}  // namespace

// Near is the L2 of each thread in use: on an Intel server, with a share of the L3 as well, three of four shapes were 1.15x to
// 1.4x slower. An AMD's L3 is about as fast as its L2: two passes over all images at once were up to 1.4x faster there.
// From where to stream: alone, both passes gain from right behind the L2 on where the L3 is as slow as Intel's servers'
// (on AMD streaming lost 2x to 4x inside it). But the next layer reads y: with streaming from 4 MB on, a whole SE-ResNet-50
// (bfloat16, 16 images, Intel) took 282 ms, from 64 MB on 231. What comes after backward gained and lost nothing.
Machine machine_of(std::int64_t threads) {
  static const std::int64_t level2 = std::max<std::int64_t>(1 << 20, system::cache_bytes(2)),
                            shared = system::cache_bytes(3) * 85 / 100;
  static const bool amd = is_amd();
  Machine m;
  m.threads = threads;
  m.near_bytes = level2 * threads;
  m.shared_bytes = amd ? shared : 0;
  m.stream_forward_bytes = std::max(m.near_bytes, std::min<std::int64_t>(shared, 64 << 20));
  m.stream_backward_bytes = std::max(m.near_bytes, m.shared_bytes);
  return m;
}

bool has_f16c() {
#if defined(__x86_64__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
#else
  return false;
#endif
}

bool may_use_amx() {
#if defined(__x86_64__)
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;  // clang 16's __builtin_cpu_supports does not know them
  unsigned a = 0, b = 0, c = 0, d = 0;
  const bool has = __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & kAmxBf16) && (d & kAmxTile);
  return has && system::allow_tiles();
#else
  return false;
#endif
}

}  // namespace senet
