// The system's clocks, without Python.
#pragma once

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <ctime>
#if defined(__x86_64__)
#include <cpuid.h>
#include <x86intrin.h>
#endif

#include "system.h"

namespace senet::ids {

// Milliseconds since the Unix epoch.
inline uint64_t realtime_ms() {
  timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  return static_cast<uint64_t>(t.tv_sec) * 1000 + static_cast<uint32_t>(t.tv_nsec) / 1000000;
}

// The time at the kernel's last tick (4 ms ago at the most with 250 of them a second), six times cheaper.
inline uint64_t coarse_ms() {
  timespec t;
  system::coarse_time(&t);
  return static_cast<uint64_t>(t.tv_sec) * 1000 + static_cast<uint32_t>(t.tv_nsec) / 1000000;
}

// For durations; CLOCK_REALTIME may step.
inline uint64_t monotonic_ns() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<uint64_t>(t.tv_sec) * 1000000000 + static_cast<uint64_t>(t.tv_nsec);
}

// The processor's counter, where it runs at one rate in every state of power.
inline bool has_steady_counter() {
#if defined(__x86_64__)
  unsigned a, b, c, d = 0;
  return __get_cpuid(0x80000007, &a, &b, &c, &d) && (d >> 8 & 1);
#else
  return false;
#endif
}

#if defined(__x86_64__)
// This thread's last reading of the realtime clock holds until the counter has passed `span` from `start`: the end of its
// millisecond, early by 0.1 % and never late. A clock that is set meanwhile is noticed then.
struct CountedMillisecond {
  uint64_t ms = 0, start = 0, span = 0;
  uint64_t first_ns = 0, first_count = 0;  // for the counter's rate
};
#if defined(__GNUC__)
__attribute__((tls_model("initial-exec")))
#endif
inline thread_local CountedMillisecond counted;

inline uint64_t read_counted_ms() {
  const uint64_t count = __rdtsc();  // before the clock: the span is counted from here
  timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  counted.ms = static_cast<uint64_t>(t.tv_sec) * 1000 + static_cast<uint32_t>(t.tv_nsec) / 1000000;
  const uint64_t now_ns = monotonic_ns(), elapsed_ns = now_ns - counted.first_ns;
  counted.start = count;
  counted.span = 0;
  if (counted.first_ns == 0 || count <= counted.first_count || elapsed_ns > 1000000000) {
    counted.first_ns = now_ns;
    counted.first_count = __rdtsc();  // after the clock: a pause between the two makes the rate too low, not too high
  } else if (elapsed_ns > 1000000) {
    const auto left_ns = static_cast<uint64_t>(1000000 - t.tv_nsec % 1000000);
    counted.span = (count - counted.first_count) * 999 / elapsed_ns * left_ns / 1000;
  }
  return counted.ms;
}
#endif

// Milliseconds since the Unix epoch by the processor's counter; needs has_steady_counter().
inline uint64_t counted_ms() {
#if defined(__x86_64__)
  // Unsigned: a counter that was set back reads the clock again.
  if (__rdtsc() - counted.start < counted.span) return counted.ms;
  return read_counted_ms();
#else
  return realtime_ms();
#endif
}

// Sleeps up to the next millisecond of the realtime clock; true if a signal arrived. The sleep is relative: an
// absolute one would last longer by as much as the clock is set back meanwhile.
inline bool nap() {
  timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  t.tv_sec = 0;
  t.tv_nsec = 1000000 - t.tv_nsec % 1000000;
  return nanosleep(&t, nullptr) != 0 && errno == EINTR;
}

}  // namespace senet::ids
