// Claims one after another, whatever the clock and the bounds say; what each gives is written out.
#pragma once
#include <cstdio>
#include <cstdlib>
#include <set>

#include "ids/snowflake.h"
#include "ids/word.h"

namespace {

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

}  // namespace
