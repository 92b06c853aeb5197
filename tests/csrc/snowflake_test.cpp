// The claim, the bulk writer, threads and the fork, without Python. Built alone with -Icsrc, also under sanitizers:
//   g++ -std=c++17 -Icsrc -pthread tests/csrc/snowflake_test.cpp && ./a.out
#include <sys/wait.h>

#include <cstdio>
#include <memory>
#include <set>
#include <thread>
#include <vector>

#include "claim_test.h"
#include "ids/clock.h"
#include "ids/write_run.h"

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
