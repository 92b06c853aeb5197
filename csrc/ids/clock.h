// The system's clocks, without Python.
#pragma once

#include <cerrno>
#include <cstdint>
#include <ctime>

namespace senet::ids {

// Milliseconds since the Unix epoch.
inline uint64_t realtime_ms() {
  timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  return static_cast<uint64_t>(t.tv_sec) * 1000 + static_cast<uint32_t>(t.tv_nsec) / 1000000;
}

// For durations; CLOCK_REALTIME may step.
inline uint64_t monotonic_ns() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<uint64_t>(t.tv_sec) * 1000000000 + static_cast<uint64_t>(t.tv_nsec);
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
