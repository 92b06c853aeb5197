// The claim, the bulk writer and the fork, without Python. Built alone with -Icsrc, also under sanitizers:
//   g++ -std=c++17 -Icsrc -pthread tests/csrc/snowflake_test.cpp && ./a.out
#include <sys/wait.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <set>
#include <thread>
#include <vector>

#include "ids/clock.h"
#include "ids/snowflake.h"
#include "ids/word.h"
#include "ids/write_run.h"

using namespace senet::ids;

#define CHECK(condition)                                                   \
  do {                                                                     \
    if (!(condition)) {                                                    \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                        \
    }                                                                      \
  } while (0)

constexpr uint64_t kEpoch = 1288834974657;
constexpr Layout kTwitter{kEpoch - 2, 1, mask(41), 22, 10, 12, 12, 0};
constexpr Layout kSonyflake{1409529600000 - 20, 10, mask(39), 24, 16, 0, 8, 16};
constexpr uint64_t kNow = 1656432460105;

void test_compose() {
  const Fields tweet = decompose(kTwitter, 1541815603606036480);
  CHECK(tweet.timestamp + kEpoch == kNow && tweet.worker_id == 378 && tweet.sequence == 0);
  CHECK(compose(kTwitter, tweet) == 1541815603606036480);
  const Fields fields = decompose(kSonyflake, compose(kSonyflake, {12345, 678, 90}));
  CHECK(fields.timestamp == 12345 && fields.worker_id == 678 && fields.sequence == 90);
}

void test_claim() {
  State state;
  const Generator generator{&state, 1023, 0, 0, kTwitter};
  const uint64_t begin = (kNow - kEpoch + 2) << 12;
  Run run = claim(generator, kNow, 4095);
  CHECK(run.first == begin && run.count == 4095);
  run = claim(generator, kNow, 10);  // the 4096th is the last of the tick
  CHECK(run.first == begin + 4095 && run.count == 1);
  CHECK(decompose(kTwitter, id_of(generator, run.first)).worker_id == 1023);
  CHECK(claim(generator, kNow, 1).first == kWait);
  CHECK(claim(generator, kNow - 5, 1).first == kWait);
  CHECK(begin_ms(generator, state.word) == kNow);
  CHECK(claim(generator, kNow + 1, 1).first == begin + 4096);
  CHECK(claim(generator, kEpoch - 1, 1).first == kOutOfRange);
  CHECK(claim(generator, kEpoch - 3, 1).first == kOutOfRange);
  CHECK(claim(generator, kEpoch + mask(41) + 1, 1).first == kOutOfRange);
  CHECK(claim(generator, kEpoch + mask(41), 5000).count == 4096);
  state.word = kForked;
  CHECK(claim(generator, kNow, 1).first == kForked && state.word == kForked);
}

// Where words are smallest: the first tick of the shortest sequence has all its IDs, from ID 0 on.
void test_first_tick() {
  constexpr Layout kShort{980, 10, mask(41), 1, 0, 1, 1, 0};
  State state;
  const Generator generator{&state, 0, 0, 0, kShort};
  for (const int64_t id : {0, 1}) {
    const Run run = claim(generator, 1000, 1);
    CHECK(run.count == 1 && id_of(generator, run.first) == id && begin_ms(generator, run.first) == 1000);
  }
  CHECK(claim(generator, 1009, 1).first == kWait);
  for (const uint64_t now : {999, 989, 979, 0}) CHECK(claim(generator, now, 1).first == kOutOfRange);
  CHECK(id_of(generator, claim(generator, 1010, 1).first) == 2);
}

void test_lag_and_drift() {
  const uint64_t begin = (kNow - kEpoch + 2) << 12;
  State state;
  const Generator late{&state, 1, 3 << 12, 0, kTwitter};
  CHECK(claim(late, kNow, 4096).first == begin);  // what fits is not late
  state.word = kFresh;
  Run run = claim(late, kNow, 2 * 4096);
  CHECK(run.first == begin - 4096 && run.count == 2 * 4096);
  run = claim(late, kNow + 10, 1 << 20);
  CHECK(run.first == begin + 7 * 4096 && run.count == 4 * 4096);
  CHECK(within_tick(late, run.first + 5, run.count) == 4091 && within_tick(late, run.first + 5, 9) == 9);
  run = claim(late, kNow + 11, 1 << 20);  // nothing that was issued, or skipped, is gone back to
  CHECK(run.first == begin + 11 * 4096 && run.count == 4096);
  state.word = kFresh;
  CHECK(claim(late, kEpoch + 1, 1 << 20).first == first_word(kTwitter));

  state.word = kFresh;
  const Generator early{&state, 1, 0, 2, kTwitter};
  run = claim(early, kNow, 1 << 20);
  CHECK(run.first == begin && run.count == 3 * 4096);
  CHECK(claim(early, kNow, 1).first == kWait && claim(early, kNow + 1, 1 << 20).count == 4096);
  state.word = kFresh;
  CHECK(claim(early, kEpoch + mask(41), 1 << 20).count == 4096);  // the last tick
}

// A claim that opens a tick, and fits behind a start in it, starts there; every other claim is as it was.
void test_starts() {
  const uint64_t begin = (kNow - kEpoch + 2) << 12;
  State state;
  const Generator plain{&state, 1, 0, 0, kTwitter}, rolling{&state, 1, 0, 0, kTwitter, 1023, 0};
  const Generator random{&state, 1, 2 << 12, 3, kTwitter, 1023, 99};
  CHECK(claim(rolling, kNow - 2, 1).first == begin - 2 * 4096);  // behind no ID
  CHECK(claim(rolling, kNow - 1, 5).first == begin - 4096 + 1);
  CHECK(claim(rolling, kNow, 4090).first == begin + 6);
  CHECK(claim(rolling, kNow, 1).count == 0);
  CHECK(claim(rolling, kNow + 1, 1).first == begin + 4096);  // behind a tick that is used up
  CHECK(claim(plain, kNow + 2, 1500).first == begin + 2 * 4096);
  CHECK(claim(rolling, kNow + 3, 1).first == begin + 3 * 4096 + (1500 & 1023));
  CHECK(claim(rolling, kNow + 4, 4096 - 477 + 1).first == begin + 4 * 4096);  // fits no more behind 477
  state.word = begin + 3 * 4096 + 476;
  CHECK(claim(rolling, kNow + 4, 4096 - 477).first == begin + 4 * 4096 + 477);
  CHECK(claim(rolling, kNow + 4, 1).first == kWait);

  // SplitMix64's published outputs for the seed 1234567: the first two.
  CHECK(mix(1234567 + 0x9e3779b97f4a7c15) == 6457827717110365317u);
  CHECK(mix(1234567 + 2 * 0x9e3779b97f4a7c15) == 3203168211198807973u);
  std::set<uint64_t> starts;
  for (uint64_t tick = 10; tick < 1010; tick++) {
    const Run run = claim(random, kNow + tick, 1);
    CHECK(run.count == 1 && run.first - (begin + tick * 4096) < 1024);
    starts.insert(run.first & 4095);
    CHECK(claim(random, kNow + tick, 2).first == run.first + 1);
  }
  CHECK(starts.size() > 500);  // of 1024; 638 are expected, give or take 12
  CHECK(claim(random, kNow + 2000, 4096).first == begin + 2000 * 4096);
  CHECK(claim(random, kNow + 3000, 3 * 4096).first == begin + 2998 * 4096);  // late
  CHECK(claim(random, kNow + 3000, 4096).first == begin + 3001 * 4096);      // early
  CHECK(claim(random, kNow + 3001, 1).first == begin + 3002 * 4096);
}

// A clock that lags goes on in the tick of the last ID, and no further.
void test_catch_up() {
  State state;
  const Generator generator{&state, 1, 0, 0, kTwitter}, early{&state, 1, 0, 9, kTwitter};
  CHECK(catch_up(generator, kNow) == kNow);
  claim(generator, kNow + 7, 1);
  CHECK(catch_up(generator, kNow) == kNow + 7 && catch_up(early, kNow) == kNow);
  CHECK(catch_up(generator, kNow + 8) == kNow + 8 && catch_up(generator, kNow - 14) == kNow - 14);
  CHECK(claim(generator, catch_up(generator, kNow), 5000).count == 4095);
  CHECK(claim(generator, catch_up(generator, kNow), 1).first == kWait);
}

// No ID outside [skip_to, grant), whatever the clock says.
void test_lease() {
  const uint64_t begin = (kNow - kEpoch + 2) << 12;
  State state;
  const Generator generator{&state, 1, 9 << 12, 9, kTwitter};
  skip_to(state, begin - 1);
  skip_to(state, 5);
  grant(state, begin + 2 * 4096);
  CHECK(claim(generator, kNow - 20, 1).first == kWait);
  Run run = claim(generator, kNow + 1, 1 << 20);
  CHECK(run.first == begin && run.count == 2 * 4096);
  CHECK(claim(generator, kNow + 1, 1).first == kWait);
  CHECK(claim(generator, kNow + 2, 1).first == kExpired);
  grant(state, begin);
  CHECK(claim(generator, kNow + 2, 1).first == kExpired);
  grant(state, begin + 3 * 4096);
  CHECK(claim(generator, kNow + 2, 1).first == begin + 2 * 4096);
  CHECK(close(state) == begin + 2 * 4096);
  for (const uint64_t now : {kNow, kNow + 2, kNow + 3}) CHECK(claim(generator, now, 1).first == kClosed);
  skip_to(state, begin << 1);
  CHECK(state.word == kClosed);
}

void test_write_run() {
  struct Isa {
    bool supported;
    WriteRun write;
  };
  const Isa isas[] = {
      {true, baseline::write_run},
#if defined(__x86_64__)
      {__builtin_cpu_supports("avx2") != 0, avx2::write_run},
      {__builtin_cpu_supports("avx512f") != 0, avx512::write_run},
#endif
  };
  for (const Isa& isa : isas) {
    if (!isa.supported) continue;
    for (uint64_t n = 0; n < 200; n++) {
      for (uint64_t offset = 0; offset < 8; offset++) {
        for (const bool stream : {false, true}) {
          std::vector<int64_t> out(n + 16, -1);
          isa.write(out.data() + offset, n, 1000, 65536, stream);
          for (uint64_t i = 0; i < out.size(); i++) {
            const bool inside = i >= offset && i < offset + n;
            CHECK(out[i] == (inside ? 1000 + 65536 * static_cast<int64_t>(i - offset) : -1));
          }
        }
      }
    }
  }
}

// Threads hammer one word, one at a time and in runs, with clocks that disagree by some milliseconds and every kind of
// start.
void test_threads() {
  constexpr int kThreads = 4, kClaims = 20000;
  State* state = new_private_state();
  CHECK(state != nullptr && state->word == kFresh);
  std::vector<std::vector<int64_t>> ids(kThreads);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; t++) {
    threads.emplace_back([&, t] {
      const Generator generator{state, 7, 0, 0, kTwitter, t < 2 ? 0u : 1023u, t == 2 ? 99u : 0u};
      for (int i = 0; i < kClaims; i++) {
        const uint64_t now = kNow + static_cast<uint64_t>(i / 16 + t);
        const Run run = claim(generator, now, t % 2 ? 1 : 5);
        for (uint64_t k = 0; k < run.count; k++) {
          ids[t].push_back(id_of(generator, run.first + k));
          CHECK(begin_ms(generator, run.first) <= now);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::set<int64_t> all;
  size_t issued = 0;
  for (const std::vector<int64_t>& own : ids) {
    for (size_t i = 1; i < own.size(); i++) CHECK(own[i - 1] < own[i]);
    for (const int64_t id : own) CHECK(decompose(kTwitter, id).worker_id == 7);
    all.insert(own.begin(), own.end());
    issued += own.size();
  }
  CHECK(issued > kClaims && all.size() == issued);
}

// The exit status of a child that runs `body`.
template <typename Body>
int in_child(Body body) {
  const pid_t child = fork();
  if (child == 0) _exit(body() ? 0 : 1);
  int status = -1;
  CHECK(waitpid(child, &status, 0) == child);
  return status;
}

void test_fork() {
  State* state = new_private_state();
  static Page unwiped;  // as on a system that cannot wipe pages
  forget_at_fork(&unwiped);
  state->word = unwiped.state.word = uint64_t{1} << 40;
  CHECK(in_child([&] { return state->word == kForked && unwiped.state.word == kForked; }) == 0);
  CHECK(state->word == uint64_t{1} << 40 && unwiped.state.word == uint64_t{1} << 40);
}

void test_shared() {
  constexpr size_t kOffset = 256;
  State* shared = new_shared_state();
  std::FILE* file = std::tmpfile();
  CHECK(shared && shared->word == kFresh && file && ftruncate(fileno(file), 4096) == 0);
  State* mapped = map_state(fileno(file), kOffset);
  State* again = map_state(fileno(file), kOffset);
  CHECK(mapped && again && mapped->word == 0 && mapped->granted == 0);
  mapped->word = kFresh, mapped->granted = kUnbounded;
  CHECK(in_child([&] { return ++shared->word == kFresh + 1 && ++mapped->word == kFresh + 1; }) == 0);
  CHECK(shared->word == kFresh + 1 && again->word == kFresh + 1);
  CHECK(unmap_state(mapped) && mapped->word == kClosed && again->word == kFresh + 1);
  CHECK(close(*shared) == kFresh + 1);
  std::fclose(file);
}

// Generators that are exchanged while others claim: state and worker id belong together, whatever a claim began with.
void test_exchange_under_threads() {
  constexpr uint64_t kWorkers = 1000;
  static State states[kWorkers];
  std::vector<std::unique_ptr<Generator>> generators;
  for (uint64_t worker = 0; worker < kWorkers; worker++) {
    generators.push_back(std::make_unique<Generator>(Generator{&states[worker], worker, 0, 0, kTwitter}));
  }
  void* slot = nullptr;
  publish(&slot, generators[0].get());
  std::vector<std::vector<int64_t>> ids(3);
  std::atomic<uint64_t> now{kNow};
  std::vector<std::thread> threads;
  for (std::vector<int64_t>& own : ids) {
    threads.emplace_back([&] {
      while (true) {
        const Generator* generator = current(&slot);
        const Run run = claim(*generator, now, 1);
        if (run.count) own.push_back(id_of(*generator, run.first));
        if (generator->worker_id == kWorkers - 1) return;
      }
    });
  }
  for (uint64_t worker = 1; worker < kWorkers; worker++) {
    now++;
    skip_to(states[worker], states[worker - 1].word.load() + (1 << 12));  // as a generator that goes on does
    publish(&slot, generators[worker].get());
  }
  for (std::thread& thread : threads) thread.join();
  std::set<int64_t> all;
  size_t issued = 0;
  for (const std::vector<int64_t>& own : ids) {
    all.insert(own.begin(), own.end());
    issued += own.size();
  }
  CHECK(issued && all.size() == issued);
}

// Claims that are under way while a state is closed: none ends above what close() returned.
void test_close_under_threads() {
  for (int round = 0; round < 200; round++) {
    State state;
    std::atomic<bool> go{false};
    uint64_t highest[2] = {0, 0};
    std::vector<std::thread> threads;
    for (uint64_t& own : highest) {
      threads.emplace_back([&] {
        const Generator generator{&state, 7, 0, 0, kTwitter};
        while (!go) {
        }
        for (uint64_t now = kNow;; now++) {
          const Run run = claim(generator, now, 3);
          if (run.first == kClosed) return;
          if (run.count) own = run.first + run.count - 1;
        }
      });
    }
    go = true;
    while (state.word < (kNow - kEpoch) << 12) {
    }
    const uint64_t last = close(state);
    for (std::thread& thread : threads) thread.join();
    CHECK(std::max(highest[0], highest[1]) == last);
  }
}

// A file's state that is taken away while others claim on it: they reach the file, or are refused as closed ones, and never
// read what is neither. What another has mapped goes on.
void test_unmap_under_threads() {
  std::FILE* file = std::tmpfile();
  CHECK(file && ftruncate(fileno(file), static_cast<off_t>(senet::system::page_bytes())) == 0);
  State* others = map_state(fileno(file), 256);
  CHECK(others);
  others->word = kFresh, others->granted = kUnbounded;
  for (uint64_t round = 0; round < 300; round++) {
    State* mapped = map_state(fileno(file), 256);
    CHECK(mapped);
    const uint64_t start = others->word;
    uint64_t highest[2] = {0, 0};
    std::vector<std::thread> threads;
    for (uint64_t& own : highest) {
      threads.emplace_back([&] {
        const Generator generator{mapped, 7, 0, 0, kTwitter};
        for (uint64_t now = kNow + round * 100000;; now++) {
          const Run run = claim(generator, now, 3);
          if (run.count) own = run.first + run.count - 1;
          if (run.first == kClosed) return;
          CHECK(run.count || run.first == kWait);
        }
      });
    }
    while (others->word == start) {
    }
    const uint64_t last = unmap_state(mapped);
    for (std::thread& thread : threads) thread.join();
    CHECK(last == others->word && last == std::max(highest[0], highest[1]));
    CHECK(in_child([&] { return mapped->word == kClosed && ++others->word == last + 1; }) == 0);
    CHECK(mapped->word == kClosed && others->word == last + 1);
    free_state(mapped);
  }
  free_state(others);
  std::fclose(file);
}

void test_clock() {
  const uint64_t before = realtime_ms(), started = monotonic_ns();
  CHECK(!nap());
  CHECK(realtime_ms() > before && monotonic_ns() > started);
  for (const auto read : {coarse_ms, has_steady_counter() ? counted_ms : coarse_ms}) {
    uint64_t last = 0, changes = 0;
    for (const uint64_t until = monotonic_ns() + 10000000000; changes <= 4 && monotonic_ns() < until;) {
      const uint64_t early = read(), now = realtime_ms();
      CHECK(early <= now);
      changes += early != last;
      last = early;
    }
    CHECK(changes > 4);
  }
}

int main() {
  test_compose();
  test_claim();
  test_first_tick();
  test_lag_and_drift();
  test_starts();
  test_catch_up();
  test_lease();
  test_write_run();
  test_threads();
  test_close_under_threads();
  test_exchange_under_threads();
  test_fork();
  test_shared();
  test_unmap_under_threads();
  test_clock();
  std::puts("snowflake_test: ok");
}
