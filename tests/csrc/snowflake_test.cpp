// The claim, the bulk writer and the fork, without Python. Built alone with -Icsrc, also under sanitizers:
//   g++ -std=c++17 -Icsrc -pthread tests/csrc/snowflake_test.cpp && ./a.out
#include <sys/wait.h>

#include <cstdio>
#include <cstdlib>
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
constexpr Layout kTwitter{kEpoch - 1, 1, mask(41) + 1, 22, 10, 12, 12, 0};
constexpr Layout kSonyflake{1409529600000 - 10, 10, mask(39) + 1, 24, 16, 0, 8, 16};
constexpr uint64_t kNow = 1656432460105;

void test_compose() {
  const Fields tweet = decompose(kTwitter, 1541815603606036480);
  CHECK(tweet.timestamp + kEpoch == kNow && tweet.worker_id == 378 && tweet.sequence == 0);
  CHECK(compose(kTwitter, tweet) == 1541815603606036480);
  const Fields fields = decompose(kSonyflake, compose(kSonyflake, {12345, 678, 90}));
  CHECK(fields.timestamp == 12345 && fields.worker_id == 678 && fields.sequence == 90);
}

void test_claim() {
  Word word{kFresh};
  const Generator generator{&word, 1023, kTwitter};
  const uint64_t begin = (kNow - kEpoch + 1) << 12;
  Run run = claim(generator, kNow, 4095);
  CHECK(run.first == begin && run.count == 4095);
  run = claim(generator, kNow, 10);  // the 4096th is the last of the tick
  CHECK(run.first == begin + 4095 && run.count == 1);
  CHECK(decompose(kTwitter, id_of(generator, run.first)).worker_id == 1023);
  CHECK(claim(generator, kNow, 1).first == kWait);
  CHECK(claim(generator, kNow - 5, 1).first == kWait);
  CHECK(begin_ms(generator, word) == kNow);
  CHECK(claim(generator, kNow + 1, 1).first == begin + 4096);
  CHECK(claim(generator, kEpoch - 1, 1).first == kOutOfRange);
  CHECK(claim(generator, kEpoch + mask(41) + 1, 1).first == kOutOfRange);
  CHECK(claim(generator, kEpoch + mask(41), 5000).count == 4096);
  word = kForked;
  CHECK(claim(generator, kNow, 1).first == kForked && word == kForked);
}

// Where words are smallest: the first tick of the shortest sequence has all its IDs, from ID 0 on.
void test_first_tick() {
  constexpr Layout kShort{990, 10, mask(41) + 1, 1, 0, 1, 1, 0};
  Word word{kFresh};
  const Generator generator{&word, 0, kShort};
  for (const int64_t id : {0, 1}) {
    const Run run = claim(generator, 1000, 1);
    CHECK(run.count == 1 && id_of(generator, run.first) == id && begin_ms(generator, run.first) == 1000);
  }
  CHECK(claim(generator, 1009, 1).first == kWait);
  CHECK(claim(generator, 999, 1).first == kOutOfRange && claim(generator, 989, 1).first == kOutOfRange);
  CHECK(id_of(generator, claim(generator, 1010, 1).first) == 2);
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

// Threads hammer one word, one at a time and in runs, with clocks that disagree by some milliseconds.
void test_threads() {
  constexpr int kThreads = 4, kClaims = 20000;
  Word* word = new_word();
  CHECK(word != nullptr && *word == kFresh);
  std::vector<std::vector<int64_t>> ids(kThreads);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; t++) {
    threads.emplace_back([&, t] {
      const Generator generator{word, 7, kTwitter};
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

void test_fork() {
  Word* word = new_word();
  static Page unwiped;  // as on a system that cannot wipe pages
  forget_at_fork(&unwiped);
  *word = unwiped.word = uint64_t{1} << 40;
  const pid_t child = fork();
  if (child == 0) _exit(*word == kForked && unwiped.word == kForked ? 0 : 1);
  int status = -1;
  CHECK(waitpid(child, &status, 0) == child && status == 0);
  CHECK(*word == uint64_t{1} << 40 && unwiped.word == uint64_t{1} << 40);
}

void test_clock() {
  const uint64_t before = realtime_ms(), started = monotonic_ns();
  CHECK(!nap());
  CHECK(realtime_ms() > before && monotonic_ns() > started);
}

int main() {
  test_compose();
  test_claim();
  test_first_tick();
  test_write_run();
  test_threads();
  test_fork();
  test_clock();
  std::puts("snowflake_test: ok");
}
