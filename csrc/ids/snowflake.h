// Snowflake IDs: one atomic word per generator. No Python, no clock: time is an argument.
//
// The word is the last ID issued, `tick << sequence_bits | sequence`; a tick is `tick_ms` milliseconds, and the layout's
// epoch begins tick 1, which keeps 0 and 1 free for kForked and kFresh. Adding one carries from the sequence into the
// tick by itself, so a claim of n IDs is one compare-and-swap to max(word + 1, now << sequence_bits) + n - 1. A claim
// never reaches past the tick of `now`: running out of sequence and a clock that steps back are both "the next word lies
// after now", and the caller waits.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace senet::ids {

using Word = std::atomic<uint64_t>;

// Words below the first that is issued.
constexpr uint64_t kForked = 0;  // the page was wiped: this process is a fork's child
constexpr uint64_t kFresh = 1;   // nothing issued yet

// Why a claim was refused, besides kForked.
constexpr uint64_t kWait = 2;        // the next word lies after now
constexpr uint64_t kOutOfRange = 3;  // now lies before the epoch, or past the last tick

struct Layout {
  uint64_t tick_0_ms;  // one tick before the epoch; wraps below 0
  uint64_t tick_ms;
  uint64_t last_tick;  // counted like those of words, from 1
  uint32_t timestamp_shift;
  uint32_t worker_bits, worker_shift;
  uint32_t sequence_bits, sequence_shift;
};

struct Generator {
  Word* word;  // shared by all generators of the same worker and layout
  uint64_t worker_id;
  Layout layout;
};

struct Fields {
  uint64_t timestamp, worker_id, sequence;
};

struct Run {
  uint64_t first;  // the first word claimed, or why none was: kForked, kWait, kOutOfRange
  uint64_t count;  // consecutive words of one tick; 0 for a refusal
};

constexpr uint64_t mask(uint32_t bits) { return (uint64_t{1} << bits) - 1; }

// A time before the epoch gives 0, or wraps to a tick far beyond any last_tick.
inline uint64_t tick_at(const Layout& layout, uint64_t now_ms) {
  const uint64_t elapsed = now_ms - layout.tick_0_ms;
  // Not `== 1`: gcc would see that dividing by 1 gives the same, and divide always.
  return layout.tick_ms < 2 ? elapsed : elapsed / layout.tick_ms;
}

// Claims up to n >= 1 words of the tick that now_ms falls in. Lock-free; relaxed order suffices, since the word
// publishes no other memory.
inline Run claim(const Generator& generator, uint64_t now_ms, uint64_t n) {
  const Layout& layout = generator.layout;
  const uint64_t tick = tick_at(layout, now_ms);
  if (tick - 1 >= layout.last_tick) return {kOutOfRange, 0};
  const uint64_t begin = tick << layout.sequence_bits;
  const uint64_t end = begin + mask(layout.sequence_bits) + 1;
  uint64_t last = generator.word->load(std::memory_order_relaxed);
  uint64_t first, count;
  do {
    if (last == kForked) return {kForked, 0};
    first = std::max(last + 1, begin);
    if (first >= end) return {kWait, 0};
    count = std::min(n, end - first);
  } while (!generator.word->compare_exchange_weak(last, first + count - 1, std::memory_order_relaxed));
  return {first, count};
}

inline int64_t compose(const Layout& layout, const Fields& fields) {
  return static_cast<int64_t>(fields.timestamp << layout.timestamp_shift | fields.worker_id << layout.worker_shift |
                              fields.sequence << layout.sequence_shift);
}

inline Fields decompose(const Layout& layout, int64_t id) {
  const uint64_t bits = static_cast<uint64_t>(id);
  return {(bits >> layout.timestamp_shift) & (layout.last_tick - 1), (bits >> layout.worker_shift) & mask(layout.worker_bits),
          (bits >> layout.sequence_shift) & mask(layout.sequence_bits)};
}

inline int64_t id_of(const Generator& generator, uint64_t word) {
  const Layout& layout = generator.layout;
  return compose(layout, {(word >> layout.sequence_bits) - 1, generator.worker_id, word & mask(layout.sequence_bits)});
}

// Consecutive words of one tick are IDs this far apart.
inline int64_t id_step(const Generator& generator) { return int64_t{1} << generator.layout.sequence_shift; }

// The time, in ms since the Unix epoch, at which the tick of `word` begins.
inline uint64_t begin_ms(const Generator& generator, uint64_t word) {
  return (word >> generator.layout.sequence_bits) * generator.layout.tick_ms + generator.layout.tick_0_ms;
}

}  // namespace senet::ids
