#include "se/cpu/machine.h"

#include <unistd.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <algorithm>
#include <fstream>
#include <string>

namespace senet {
namespace {

// The size of a cache of the first core, 0 where nobody says. Linux's own file first: sysconf adds up all the L3s of an AMD
// processor, of which a core has only one.
std::int64_t cache_bytes(int level) {
  for (int index = 0; index < 8; ++index) {
    const std::string folder = "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + "/";
    std::ifstream level_file(folder + "level"), type_file(folder + "type"), size_file(folder + "size");
    int its_level = 0;
    std::string type;
    std::int64_t kilobytes = 0;
    if (!(level_file >> its_level && type_file >> type && size_file >> kilobytes)) break;
    if (its_level == level && type == "Unified") return kilobytes << 10;
  }
#if defined(_SC_LEVEL2_CACHE_SIZE)
  return std::max<std::int64_t>(0, sysconf(level == 2 ? _SC_LEVEL2_CACHE_SIZE : _SC_LEVEL3_CACHE_SIZE));
#else
  return 0;
#endif
}

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
  static const std::int64_t level2 = std::max<std::int64_t>(1 << 20, cache_bytes(2)), shared = cache_bytes(3) * 85 / 100;
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

}  // namespace senet
