// The ticket kernels on the emulator against the naive implementation. A plain program; exits 1 on a failure.
//   tickets_test [n]    about every n-th of the cases, default 1: all
#include "cases.h"
#include "se/cuda/backward.cuh"
#include "se/cuda/forward.cuh"
#include "se/cuda/model.h"

namespace {

// What may change from run to run without a bit of the result changing.
struct Schedule {
  unsigned seed;
  int resident, blocks;
  bool save, in_place;

  int bits() const { return 0; }
  std::string name() const {
    return "seed " + std::to_string(seed) + ", resident " + std::to_string(resident) + " of " + std::to_string(blocks) +
           (save ? ", saved" : "") + (in_place ? ", in place" : "");
  }
};

constexpr int kBlock = 64;

template <class Kernel, class Launch>
void emulate(const Launch& launch, const Schedule& schedule) {
  using Shared = typename Kernel::template Shared<kBlock>;
  emulator::launch(unsigned(schedule.blocks), kBlock, sizeof(Shared), {schedule.seed, schedule.resident},
                   [&](void* shared) { Kernel::run(launch, *static_cast<Shared*>(shared)); });
}

// A launch, and where it is not in place another, which finds the counters as the first left them. make(p, plan, counters,
// scratch) is launch_of().
template <class P, class MakeLaunch, class Emulate>
bool run_twice(const std::string& where, const Case& c, const Setting& setting, const Schedule& schedule, const P& p,
               const MakeLaunch& make, const Emulate& emulate) {
  cuda::Plan plan = cuda::plan(c.shape, c.dtype, {}, {kBlock, setting.tile_bytes});
  if (setting.lag) plan.lag = std::min(setting.lag, int(c.shape.B));
  cuda::Scratch count(nullptr, c.dtype);
  make(p, plan, nullptr, count);
  Output scratch(std::size_t(count.bytes() / item_bytes(c.sum_dtype())), c.sum_dtype());
  std::vector<unsigned> counters(std::size_t(cuda::counters_of(c.shape.B)));
  for (int turn = 0; turn < (schedule.in_place ? 1 : 2); ++turn) {
    cuda::Scratch taken(scratch.data(), c.dtype);
    emulate(make(p, plan, counters.data(), taken));
    for (const unsigned counter : counters) check(counter == 0, "%s: a counter is %u after the launch", where.c_str(), counter);
  }
  check(scratch.guarded(), "%s: wrote outside of the scratch", where.c_str());
  return true;
}

struct Tested {
  static bool can(const Case&) { return true; }
  static std::vector<Schedule> schedules(unsigned seed) {
    return {{seed, 1, 3, true, false}, {seed + 1, 4, 5, seed % 2 == 0, false}, {seed + 2, 2, 2, false, true}};
  }

  static bool run(const std::string& where, const Case& c, const Setting& setting, const Schedule& schedule,
                  const ForwardCall& call) {
    const auto make = [](const auto& p, const cuda::Plan& plan, unsigned* counters, cuda::Scratch& scratch) {
      return cuda::launch_of(p, plan, counters, scratch);
    };
    return run_twice(where, c, setting, schedule, call.p, make, [&](const cuda::ForwardLaunch& launch) {
      for_types(c, [&]<class T, class W>() {
        cuda::is_general(call.p) ? emulate<cuda::Forward<T, W, true>>(launch, schedule)
                                 : emulate<cuda::Forward<T, W, false>>(launch, schedule);
      });
    });
  }
  static bool run(const std::string& where, const Case& c, const Setting& setting, const Schedule& schedule,
                  const BackwardCall& call) {
    const auto make = [](const auto& p, const cuda::Plan& plan, unsigned* counters, cuda::Scratch& scratch) {
      return cuda::launch_of(p, plan, counters, scratch, kBlock);
    };
    return run_twice(where, c, setting, schedule, call.p, make, [&](const cuda::BackwardLaunch& launch) {
      for_types(c, [&]<class T, class W>() {
        cuda::is_general(call.p) ? emulate<cuda::Backward<T, W, true>>(launch, schedule)
                                 : emulate<cuda::Backward<T, W, false>>(launch, schedule);
      });
    });
  }
};

void test_plan() {
  const cuda::Gpu h100, small{40, 4, 4 << 20};
  const auto tiles = [](const cuda::Tiles& t) {
    return std::array{t.channels, t.rows, t.columns, t.channel_tiles, t.row_tiles, t.column_tiles};
  };
  struct Known {
    Shape shape;
    Dtype dtype;
    std::array<int, 6> tiles;
    int lanes;
  };
  const Known known[] = {
      {{32, 1, 256, 3136, 16}, Dtype::f16, {4, 1, 3136, 64, 1, 1}, 64},   // whole planes, all threads at work
      {{32, 1, 512, 784, 32}, Dtype::f16, {16, 1, 784, 32, 1, 1}, 32},    // twice eight of them
      {{32, 3136, 256, 1, 16}, Dtype::f16, {64, 256, 1, 4, 13, 1}, 4},    // channels_last: 128 bytes a run
      {{32, 1, 2048, 49, 128}, Dtype::f16, {160, 1, 49, 13, 1, 1}, 8},    // 7x7: a dozen tiles of about the same size
      {{32, 49, 2048, 1, 128}, Dtype::f16, {128, 49, 1, 16, 1, 1}, 2},    // and channels_last
      {{32, 1, 192, 49, 48}, Dtype::f16, {64, 1, 49, 3, 1, 1}, 8},        // tiles of 8 kB at least
      {{1, 1, 48, 36100, 12}, Dtype::f16, {1, 1, 16384, 48, 1, 3}, 256},  // planes larger than a tile
      {{1, 40, 6, 1000, 2}, Dtype::f32, {1, 8, 1000, 6, 5, 1}, 256},      // the gated axis in the middle
      {{8, 1, 5000, 1, 2}, Dtype::f64, {1008, 1, 1, 5, 1, 1}, 1},         // a matrix
  };
  for (const Known& k : known) {
    const cuda::Plan plan = cuda::plan(k.shape, k.dtype, h100);
    check(tiles(plan.tiles) == k.tiles && plan.lanes == k.lanes,
          "the plan of [%d %d %d %d] has tiles of %d x %d x %d, %d lanes", int(k.shape.B), int(k.shape.O), int(k.shape.K),
          int(k.shape.I), plan.tiles.channels, plan.tiles.rows, plan.tiles.columns, plan.lanes);
  }
  const cuda::Plan large = cuda::plan({256, 1, 256, 3136, 16}, Dtype::f16, h100);
  check(large.blocks == 264 && large.lag == 5, "%d blocks, %d images ahead; expected 264 and 5", large.blocks, large.lag);
  Params one;
  one.shape = {1, 1, 2048, 49, 128};
  const int forward = cuda::plan(one, false, h100).blocks, backward = cuda::plan(one, true, h100).blocks;
  check(forward == 26 && backward == 264, "%d and %d blocks of one image; expected 26, and 264 for 512 jobs of weights",
        forward, backward);
  std::mt19937 random(5);
  for (int i = 0; i < 3000; ++i) {
    const auto size = [&] { return int64_t(1 << random() % 12 | random() % 50); };
    const auto often_one = [&] { return random() % 2 ? 1 : size(); };
    const Shape shape{1 + size() % 300, often_one(), size(), often_one(), 4};
    const Dtype dtype = Dtype(random() % 4);
    const cuda::Gpu& gpu = random() % 2 ? h100 : small;
    const cuda::Plan plan = cuda::plan(shape, dtype, gpu);
    const cuda::Tiles& t = plan.tiles;
    const auto covers = [](int64_t size, int tile, int count) {
      return int64_t(tile) * count >= size && int64_t(tile) * (count - 1) < size;
    };
    const int64_t run = int64_t(t.channels) * t.columns;
    const bool good =
        covers(shape.K, t.channels, t.channel_tiles) && covers(shape.O, t.rows, t.row_tiles) &&
        covers(shape.I, t.columns, t.column_tiles) && (t.column_tiles == 1 || (t.channels == 1 && t.rows == 1)) &&
        t.channels <= cuda::kMaxChannels && (t.channels % 8 == 0 || t.channels < 8 || t.channels == shape.K) &&
        (run * item_bytes(dtype) >= 64 || run == shape.K * shape.I) &&
        run * t.rows * item_bytes(dtype) <= tile_bytes(shape, item_bytes(dtype), gpu) && plan.lanes <= cuda::kThreads &&
        plan.lag >= 1 &&
        (t.channels >= 8 || t.channels == shape.K || t.columns < 256 || plan.lanes * t.channels == cuda::kThreads) &&
        plan.lag <= shape.B && plan.blocks >= 1 && plan.blocks <= gpu.processors * gpu.blocks_per_processor;
    check(good, "the plan of [%d %d %d %d], %d bytes: tiles of %d x %d x %d, %d lanes, lag %d, %d blocks", int(shape.B),
          int(shape.O), int(shape.K), int(shape.I), int(item_bytes(dtype)), t.channels, t.rows, t.columns, plan.lanes, plan.lag,
          plan.blocks);
    const cuda::Plan alone = cuda::plan({1, shape.O, shape.K, shape.I, 4}, dtype, gpu);
    check(tiles(alone.tiles) == tiles(t) && alone.lanes == plan.lanes, "the cut of an image depends on the batch");
  }
  for (int i = 0; i < 20000; ++i) {
    const int d = 1 + int(random() % (i % 2 ? 100 : 0x7fffffff)), n = int(random() >> 1 >> random() % 20);
    check(cuda::divide(n, cuda::divisor(d)) == n / d, "%d / %d", n, d);
  }
}

}  // namespace

int main(int count, char** arguments) { return test<Tested>(count, arguments, test_plan); }
