// Snowflake IDs: one atomic word per worker and layout. No Python, no clock, no source of randomness: time and the seed are
// arguments.
//
// The word is the last ID issued, `tick << sequence_bits | sequence`; a tick is `tick_ms` milliseconds, and the layout's
// epoch begins tick kFirstTick, which keeps the words below 4 free for kForked, kClosed and kFresh. Adding one carries
// from the sequence into the tick by itself, so a claim of n IDs is one compare-and-swap to
// max(word + 1, now << sequence_bits) + n - 1. A claim never reaches past the tick of `now` (plus max_drift), nor past
// the lease: running out of sequence and a clock that steps back are both "the next word lies after now", and the
// caller waits.
//
// A claim that opens a tick may start a little above its first word (start_mask), so that `id % shards` is not always that
// of sequence 0. It skips words and never goes back to them, so nothing above depends on where it starts.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace senet::ids {

using Word = std::atomic<uint64_t>;

// Words below the first that is issued.
constexpr uint64_t kForked = 0;  // the page was wiped: this process is a fork's child
constexpr uint64_t kClosed = 1;  // the lease was given back
constexpr uint64_t kFresh = 3;   // nothing issued yet

// Why a claim was refused, besides kForked and kClosed.
constexpr uint64_t kWait = 2;        // the next word lies after now
constexpr uint64_t kOutOfRange = 3;  // now lies before the epoch, or past the last tick
constexpr uint64_t kExpired = 4;     // the next word lies past the lease

constexpr uint64_t kFirstTick = 2;
constexpr uint64_t kUnbounded = ~uint64_t{0};

struct Layout {
  uint64_t tick_0_ms;  // kFirstTick ticks before the epoch; wraps below 0
  uint64_t tick_ms;
  uint64_t timestamp_max;
  uint32_t timestamp_shift;
  uint32_t worker_bits, worker_shift;
  uint32_t sequence_bits, sequence_shift;
};

// What all generators of one worker and layout share, processes included.
struct State {
  Word word{kFresh};
  Word granted{kUnbounded};  // the first word past the lease; only ever raised
};

struct Generator {
  State* state;
  uint64_t worker_id;
  uint64_t max_lag;    // words that a claim may begin before now, where it would not fit otherwise
  uint64_t max_drift;  // ticks that a claim may reach past now
  Layout layout;
  uint64_t start_mask = 0;      // the sequences at which a tick may start: 0 to this, which is a power of two less 1
  uint64_t seed = 0;            // of random starts; 0: rolling ones
  Generator* before = nullptr;  // which this one replaced; claims may still be under way on it
};

// The generator that a slot holds now. One that was published never changes: a claim and the ID made of it must take
// state and worker id from the same one.
inline Generator* current(void* const* slot) { return static_cast<Generator*>(__atomic_load_n(slot, __ATOMIC_ACQUIRE)); }

inline void publish(void** slot, Generator* generator) {
  __atomic_store_n(slot, static_cast<void*>(generator), __ATOMIC_RELEASE);
}

struct Fields {
  uint64_t timestamp, worker_id, sequence;
};

struct Run {
  uint64_t first;  // the first word claimed, or why none was: kForked, kClosed, kWait, kOutOfRange, kExpired
  uint64_t count;  // consecutive words, of several ticks only with max_lag or max_drift; 0 for a refusal
};

constexpr uint64_t mask(uint32_t bits) { return (uint64_t{1} << bits) - 1; }

// Counted from kFirstTick; a time before the epoch gives less, or wraps to far beyond the last tick.
inline uint64_t tick_at(const Layout& layout, uint64_t now_ms) {
  const uint64_t elapsed = now_ms - layout.tick_0_ms;
  // Not `== 1`: gcc would see that dividing by 1 gives the same, and divide always.
  return layout.tick_ms < 2 ? elapsed : elapsed / layout.tick_ms;
}

inline uint64_t first_word(const Layout& layout) { return kFirstTick << layout.sequence_bits; }

// SplitMix64's output function: spreads well, and hides nothing.
inline uint64_t mix(uint64_t x) {
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
  x = (x ^ x >> 27) * 0x94d049bb133111eb;
  return x ^ x >> 31;
}

// The sequence at which a claim behind `last` opens `tick`: a hash of the tick and the seed, or the one behind the last
// ID's; 0 behind none.
inline uint64_t start_of(const Generator& generator, uint64_t last, uint64_t tick) {
  if (!generator.start_mask) return 0;
  const uint64_t rolled = last > kFresh ? last + 1 : 0;
  return (generator.seed ? mix((tick - kFirstTick) * 0x9e3779b97f4a7c15 + generator.seed) : rolled) & generator.start_mask;
}

inline uint64_t expired_or_refused(const State& state) {
  const uint64_t last = state.word.load(std::memory_order_relaxed);
  return last <= kClosed ? last : kExpired;
}

// Claims up to n >= 1 words, the last of them at most in the tick that now_ms falls in, plus max_drift. Lock-free;
// relaxed order suffices, since the word publishes no other memory, and an outdated `granted` is a smaller one.
inline Run claim(const Generator& generator, uint64_t now_ms, uint64_t n) {
  const Layout& layout = generator.layout;
  const uint64_t tick = tick_at(layout, now_ms);
  if (tick - kFirstTick > layout.timestamp_max) return {kOutOfRange, 0};
  const uint64_t granted = generator.state->granted.load(std::memory_order_relaxed);
  const uint64_t now = tick << layout.sequence_bits;
  if (now >= granted) return {expired_or_refused(*generator.state), 0};
  const uint64_t last_tick = std::min(tick + generator.max_drift, layout.timestamp_max + kFirstTick);
  const uint64_t end = std::min((last_tick + 1) << layout.sequence_bits, granted);
  // Of the tick, what is granted; worked out by the few claims that ask for it.
  const auto room = [&] { return std::min(now + mask(layout.sequence_bits) + 1, granted) - now; };
  uint64_t begin = now;
  if (generator.max_lag && n > room()) begin -= std::min({n - room(), generator.max_lag, now - first_word(layout)});
  uint64_t last = generator.state->word.load(std::memory_order_relaxed);
  uint64_t first, count;
  do {
    if (last <= kClosed) return {last, 0};
    first = last + 1;
    if (first < begin) {  // behind a tick that is used up it starts at 0: bursts lose nothing to starts
      const uint64_t start = start_of(generator, last, tick);
      first = n + start <= room() ? begin + start : begin;
    }
    if (first >= end) return {kWait, 0};
    count = std::min(n, end - first);
  } while (!generator.state->word.compare_exchange_weak(last, first + count - 1, std::memory_order_relaxed));
  return {first, count};
}

// Makes sure that `word` and all before it are never issued.
inline void skip_to(State& state, uint64_t word) {
  uint64_t last = state.word.load(std::memory_order_relaxed);
  while (last > kClosed && last < word && !state.word.compare_exchange_weak(last, word, std::memory_order_relaxed)) {
  }
}

// Words below `end` are granted from now on. A lease that ends earlier than the one before changes nothing.
inline void grant(State& state, uint64_t end) {
  uint64_t before = state.granted.load(std::memory_order_relaxed);
  while ((before == kUnbounded || before < end) &&
         !state.granted.compare_exchange_weak(before, end, std::memory_order_relaxed)) {
  }
}

// Refuses all later claims, those under way included; the last word issued, kFresh for none.
inline uint64_t close(State& state) { return state.word.exchange(kClosed, std::memory_order_relaxed); }

inline int64_t compose(const Layout& layout, const Fields& fields) {
  return static_cast<int64_t>(fields.timestamp << layout.timestamp_shift | fields.worker_id << layout.worker_shift |
                              fields.sequence << layout.sequence_shift);
}

inline Fields decompose(const Layout& layout, int64_t id) {
  const uint64_t bits = static_cast<uint64_t>(id);
  return {(bits >> layout.timestamp_shift) & layout.timestamp_max, (bits >> layout.worker_shift) & mask(layout.worker_bits),
          (bits >> layout.sequence_shift) & mask(layout.sequence_bits)};
}

inline int64_t id_of(const Generator& generator, uint64_t word) {
  const Layout& layout = generator.layout;
  return compose(layout, {(word >> layout.sequence_bits) - kFirstTick, generator.worker_id, word & mask(layout.sequence_bits)});
}

// Consecutive words of one tick are IDs this far apart.
inline int64_t id_step(const Generator& generator) { return int64_t{1} << generator.layout.sequence_shift; }

// Of `count` consecutive words from `first` on, those of the first one's tick.
inline uint64_t within_tick(const Generator& generator, uint64_t first, uint64_t count) {
  const uint64_t sequences = mask(generator.layout.sequence_bits);
  return std::min(count, sequences + 1 - (first & sequences));
}

// The time, in ms since the Unix epoch, at which the tick of `word` begins.
inline uint64_t begin_ms(const Generator& generator, uint64_t word) {
  return (word >> generator.layout.sequence_bits) * generator.layout.tick_ms + generator.layout.tick_0_ms;
}

// The most that a coarse clock lags: a kernel's tick, and one that was late.
constexpr uint64_t kCoarseLagMs = 20;

// A time for a claim by a clock that lags: that of the last ID, where another clock was read for it. Without this a word
// that is ahead by a millisecond would stay so.
inline uint64_t catch_up(const Generator& generator, uint64_t coarse_ms) {
  const uint64_t last_ms = begin_ms(generator, generator.state->word.load(std::memory_order_relaxed));
  return generator.max_drift == 0 && last_ms - coarse_ms <= kCoarseLagMs ? last_ms : coarse_ms;
}

}  // namespace senet::ids
