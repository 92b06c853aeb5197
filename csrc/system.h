// What the C++ asks of the system beyond POSIX: Linux's own calls, and what stands in for them elsewhere. SENET_PORTABLE
// compiles the stand-ins on Linux too, so that they can be tested there (`make macos`).
#pragma once

#include <sys/mman.h>
#if defined(__linux__)
#include <sys/syscall.h>
#endif
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <ctime>

#if defined(__linux__) && !defined(SENET_PORTABLE)
#define SENET_LINUX 1
#else
#define SENET_LINUX 0
#endif
#if defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace senet::system {

inline std::size_t page_bytes() { return static_cast<std::size_t>(sysconf(_SC_PAGESIZE)); }

// CLOCK_REALTIME, which may be that of the kernel's last tick if that is cheaper to read.
inline void coarse_time(timespec* t) {
#if SENET_LINUX
  clock_gettime(CLOCK_REALTIME_COARSE, t);
#else
  clock_gettime(CLOCK_REALTIME, t);
#endif
}

// Whether the child of a fork will read zeros in this page; also of a clone() that bypasses libc, and so pthread_atfork.
inline bool wipe_at_fork([[maybe_unused]] void* page) {
#if SENET_LINUX && defined(MADV_WIPEONFORK)  // Linux 4.14
  return madvise(page, page_bytes(), MADV_WIPEONFORK) == 0;
#else
  return false;
#endif
}

// Advice for a range whose ends are those of pages; a refusal changes nothing.
inline void prefer_huge_pages([[maybe_unused]] void* begin, [[maybe_unused]] std::size_t bytes) {
#if SENET_LINUX && defined(MADV_HUGEPAGE)
  madvise(begin, bytes, MADV_HUGEPAGE);
#endif
}

// A page of memory. Where no mapping can be moved (SENET_LINUX), the page behind it belongs to it: map_file() says what for.
inline void* new_page(int kind) {
  const std::size_t bytes = SENET_LINUX ? page_bytes() : 2 * page_bytes();
  void* page = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, kind | MAP_ANONYMOUS, -1, 0);
  return page == MAP_FAILED ? nullptr : page;
}

// The first page of a file, and elsewhere than on Linux a second time behind it, for take_away(). nullptr with errno.
inline void* map_file(int file) {
#if SENET_LINUX
  void* page = mmap(nullptr, page_bytes(), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  return page == MAP_FAILED ? nullptr : page;
#else
  char* page = static_cast<char*>(new_page(MAP_PRIVATE));
  for (int i = 0; page && i < 2; ++i) {
    if (mmap(page + i * page_bytes(), page_bytes(), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0) == MAP_FAILED) {
      munmap(page, 2 * page_bytes());
      return nullptr;
    }
  }
  return page;
#endif
}

inline void free_page(void* page) { munmap(page, SENET_LINUX ? page_bytes() : 2 * page_bytes()); }

// Replaces the page of map_file() by a private one that has `content` at `offset`, in one step for all threads; `last` is the
// number that the file has there after that. False with errno where memory, or room for a temporary file, is short.
inline bool take_away(void* page, std::size_t offset, const void* content, std::size_t bytes, std::uint64_t* last) {
#if SENET_LINUX
  void* file = mremap(page, 0, page_bytes(), MREMAP_MAYMOVE);  // of size 0: mapped a second time
  if (file == MAP_FAILED) return false;
  void* fresh = new_page(MAP_PRIVATE);
  if (fresh) std::memcpy(static_cast<char*>(fresh) + offset, content, bytes);
  const bool taken = fresh && mremap(fresh, page_bytes(), page_bytes(), MREMAP_MAYMOVE | MREMAP_FIXED, page) != MAP_FAILED;
#else
  // From a file without a name: memory could be filled only once it is there, and would read 0 until then.
  void* file = static_cast<char*>(page) + page_bytes();
  std::FILE* fresh = std::tmpfile();
  if (!fresh) return false;
  const int descriptor = fileno(fresh);
  const bool taken = ftruncate(descriptor, static_cast<off_t>(page_bytes())) == 0 &&
                     pwrite(descriptor, content, bytes, static_cast<off_t>(offset)) == static_cast<ssize_t>(bytes) &&
                     mmap(page, page_bytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, descriptor, 0) != MAP_FAILED;
  std::fclose(fresh);
#endif
  if (taken) *last = __atomic_load_n(reinterpret_cast<std::uint64_t*>(static_cast<char*>(file) + offset), __ATOMIC_SEQ_CST);
#if SENET_LINUX
  munmap(file, page_bytes());
#endif
  return taken;
}

// The size of a cache of the first core, 0 where nobody says. Linux's own file first: sysconf adds up all the L3s of an AMD
// processor, of which a core has only one.
inline std::int64_t cache_bytes(int level) {
#if SENET_LINUX
  for (int index = 0; index < 8; ++index) {
    char path[80], text[3][32] = {};
    const char* const names[] = {"level", "type", "size"};
    for (int i = 0; i < 3; ++i) {
      std::snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/%s", index, names[i]);
      std::FILE* file = std::fopen(path, "re");
      if (!file) break;
      if (std::fscanf(file, "%31s", text[i]) != 1) text[i][0] = 0;
      std::fclose(file);
    }
    int its_level = 0;
    long long kilobytes = 0;
    if (std::sscanf(text[0], "%d", &its_level) != 1 || std::sscanf(text[2], "%lld", &kilobytes) != 1) break;
    if (its_level == level && std::strcmp(text[1], "Unified") == 0) return kilobytes << 10;
  }
#endif
#if defined(__APPLE__)
  std::int64_t bytes = 0;  // of the fast cores; Apple's own processors tell of no L3
  std::size_t length = sizeof bytes;
  const char* const name = level == 2 ? "hw.perflevel0.l2cachesize" : "hw.l3cachesize";
  return sysctlbyname(name, &bytes, &length, nullptr, 0) == 0 ? bytes : 0;
#elif defined(_SC_LEVEL2_CACHE_SIZE)
  const std::int64_t bytes = sysconf(level == 2 ? _SC_LEVEL2_CACHE_SIZE : _SC_LEVEL3_CACHE_SIZE);
  return bytes > 0 ? bytes : 0;
#else
  return 0;
#endif
}

// Whether this process may use AMX's tiles, of which a thread has 8 KB more state to save.
inline bool allow_tiles() {
#if SENET_LINUX && defined(__x86_64__)
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA: Linux 5.16
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace senet::system
