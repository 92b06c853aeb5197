// The ticket kernels on the emulator against the naive implementation. A plain program; exits 1 on a failure.
//   tickets_test [n]    every n-th of the cases, default 1: all
#include "cases.h"
#include "se/cuda/backward.cuh"
#include "se/cuda/forward.cuh"

namespace {

// What may change from run to run without a bit of the result changing.
struct Schedule {
  unsigned seed;
  int resident, blocks;
  bool save, in_place;

  std::string name() const {
    return "seed " + std::to_string(seed) + ", resident " + std::to_string(resident) + " of " + std::to_string(blocks) +
           (save ? ", saved" : "") + (in_place ? ", in place" : "");
  }
};

constexpr int kBlock = 64;

template <class Launch, class Kernel>
void emulate(const Launch& launch, unsigned blocks, const Schedule& schedule) {
  emulator::launch(blocks, kBlock, sizeof(typename Kernel::template Shared<kBlock>), {schedule.seed, schedule.resident},
                   [&](void* shared) { Kernel::run(launch, *static_cast<typename Kernel::template Shared<kBlock>*>(shared)); });
}

struct Forwarded {
  Output y, saved;
};

Forwarded run_forward(const std::string& where, const Case& c, const Setting& setting, const Schedule& schedule,
                      const Inputs& in, const PrologueNumbers& pre) {
  const int64_t image = c.shape.O * c.shape.K * c.shape.I;
  const Input x(spread(c, in[X]), c.dtype, setting.x_offset);
  const Input residual(spread(c, in[RESIDUAL]), c.dtype, setting.residual_offset);
  const Input w1(in[W1], c.weight_dtype, setting.tile_bytes % 3), b1(in[B1], c.weight_dtype), b2(in[B2], c.weight_dtype);
  const Input w2(in[W2], c.weight_dtype, setting.tile_bytes % 2);
  const Input scale(pre.scale, c.sum_dtype()), shift(pre.shift, c.sum_dtype());
  const std::size_t width = std::size_t(2 * c.shape.K + (c.two_fc() ? c.shape.R : 0));
  Forwarded out{{in[X].size(), c.dtype, setting.y_offset}, {std::size_t(c.shape.B) * width, c.sum_dtype()}};

  ForwardParams p;
  static_cast<Params&>(p) = params_of(c, x, residual, w1, w2, schedule.save ? out.saved.data() : nullptr);
  p.prologue = {pre.scale.empty() ? nullptr : scale.data, pre.shift.empty() ? nullptr : shift.data, pre.activation};
  p.fc1_bias = c.bias1 ? b1.data : nullptr;
  p.fc2_bias = c.two_fc() && c.bias2 ? b2.data : nullptr;
  p.y = out.y.data();
  p.y_batch_stride = image;
  if (schedule.in_place) {
    for (std::size_t i = 0; i < in[X].size(); ++i) put(in[X][i], c.dtype, out.y.data() + i * std::size_t(item_bytes(c.dtype)));
    p.x = p.y;
    p.x_batch_stride = image;
  }

  cuda::Plan plan = cuda::plan(c.shape, c.dtype, {}, {kBlock, setting.tile_bytes});
  if (setting.lag) plan.lag = std::min(setting.lag, int(c.shape.B));
  cuda::Scratch count(nullptr, c.dtype);
  cuda::launch_of(p, plan, nullptr, count);
  Output scratch(std::size_t(count.bytes() / item_bytes(c.sum_dtype())), c.sum_dtype());
  std::vector<unsigned> counters(std::size_t(cuda::counters_of(c.shape.B)));
  for (int launch = 0; launch < (schedule.in_place ? 1 : 2);
       ++launch) {  // the second finds the counters as the first left them
    cuda::Scratch taken(scratch.data(), c.dtype);
    const cuda::ForwardLaunch l = cuda::launch_of(p, plan, counters.data(), taken);
    for_types(c, [&]<class T, class W>() {
      if (cuda::is_general(p)) {
        emulate<cuda::ForwardLaunch, cuda::Forward<T, W, true>>(l, unsigned(schedule.blocks), schedule);
      } else {
        emulate<cuda::ForwardLaunch, cuda::Forward<T, W, false>>(l, unsigned(schedule.blocks), schedule);
      }
    });
    for (const unsigned counter : counters) check(counter == 0, "%s: a counter is %u after the launch", where.c_str(), counter);
  }
  check(scratch.guarded(), "%s: wrote outside of the scratch", where.c_str());
  return out;
}

// The gradients that the case asks for, by Tensor.
std::vector<Output> run_backward(const std::string& where, const Case& c, const Setting& setting, const Schedule& schedule,
                                 const Inputs& in, const Results& want) {
  const Input x(spread(c, in[X]), c.dtype, setting.x_offset), grad_y(in[GRAD_Y], c.dtype, setting.y_offset);
  const Input residual(spread(c, in[RESIDUAL]), c.dtype, setting.residual_offset);
  const Input w1(in[W1], c.weight_dtype, 0), w2(in[W2], c.weight_dtype, 0), saved(want[SAVED], c.sum_dtype());
  std::vector<Output> out;
  for (int t = 0; t < kTensors; ++t) {
    out.emplace_back(want[t].size(), t >= DW1 ? c.weight_dtype : c.dtype, t == DX ? setting.y_offset : setting.x_offset);
  }
  const auto asked = [&](int t) { return c.gradients >> t & 1 ? out[t].data() : nullptr; };
  BackwardParams p;
  static_cast<Params&>(p) = params_of(c, x, residual, w1, w2, saved.data);
  p.grad_y = grad_y.data;
  p.grad_x = asked(DX);
  p.grad_residual = c.post.is_identity() ? nullptr : out[DRESIDUAL].data();
  p.grad_fc1_weight = asked(DW1), p.grad_fc1_bias = asked(DB1);
  if (c.two_fc()) p.grad_fc2_weight = asked(DW2), p.grad_fc2_bias = asked(DB2);

  cuda::Plan plan = cuda::plan(c.shape, c.dtype, {}, {kBlock, setting.tile_bytes});
  if (setting.lag) plan.lag = std::min(setting.lag, int(c.shape.B));
  cuda::Scratch count(nullptr, c.dtype);
  cuda::launch_of(p, plan, nullptr, count, kBlock);
  Output scratch(std::size_t(count.bytes() / item_bytes(c.sum_dtype())), c.sum_dtype());
  std::vector<unsigned> counters(std::size_t(cuda::counters_of(c.shape.B)));
  for (int launch = 0; launch < 2; ++launch) {
    cuda::Scratch taken(scratch.data(), c.dtype);
    const cuda::BackwardLaunch l = cuda::launch_of(p, plan, counters.data(), taken, kBlock);
    for_types(c, [&]<class T, class W>() {
      if (cuda::is_general(p)) {
        emulate<cuda::BackwardLaunch, cuda::Backward<T, W, true>>(l, unsigned(schedule.blocks), schedule);
      } else {
        emulate<cuda::BackwardLaunch, cuda::Backward<T, W, false>>(l, unsigned(schedule.blocks), schedule);
      }
    });
    for (const unsigned counter : counters) check(counter == 0, "%s: a counter is %u after the launch", where.c_str(), counter);
  }
  check(scratch.guarded(), "%s: wrote outside of the scratch", where.c_str());
  return out;
}

// ---- tests ----

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
      {{32, 1, 256, 3136, 16}, Dtype::f16, {2, 1, 3136, 128, 1, 1}, 128},  // whole planes
      {{32, 3136, 256, 1, 16}, Dtype::f16, {64, 128, 1, 4, 25, 1}, 4},     // channels_last: 128 bytes a run
      {{32, 1, 2048, 49, 128}, Dtype::f16, {167, 1, 49, 13, 1, 1}, 8},     // 7x7
      {{32, 49, 2048, 1, 128}, Dtype::f16, {128, 49, 1, 16, 1, 1}, 2},     // and channels_last
      {{1, 1, 48, 36100, 12}, Dtype::f16, {1, 1, 8192, 48, 1, 5}, 256},    // planes larger than a tile
      {{1, 40, 6, 1000, 2}, Dtype::f32, {1, 4, 1000, 6, 10, 1}, 256},      // the gated axis in the middle
      {{8, 1, 5000, 1, 2}, Dtype::f64, {1024, 1, 1, 5, 1, 1}, 1},          // a matrix
  };
  for (const Known& k : known) {
    const cuda::Plan plan = cuda::plan(k.shape, k.dtype, h100);
    check(tiles(plan.tiles) == k.tiles && plan.lanes == k.lanes,
          "the plan of [%d %d %d %d] has tiles of %d x %d x %d, %d lanes", int(k.shape.B), int(k.shape.O), int(k.shape.K),
          int(k.shape.I), plan.tiles.channels, plan.tiles.rows, plan.tiles.columns, plan.lanes);
  }
  const cuda::Plan large = cuda::plan({256, 1, 256, 3136, 16}, Dtype::f16, h100);
  check(large.blocks == 396 && large.lag == 4, "%d blocks, %d images ahead; expected 396 and 4", large.blocks, large.lag);
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
    const bool good = covers(shape.K, t.channels, t.channel_tiles) && covers(shape.O, t.rows, t.row_tiles) &&
                      covers(shape.I, t.columns, t.column_tiles) && (t.column_tiles == 1 || (t.channels == 1 && t.rows == 1)) &&
                      t.channels <= cuda::kMaxChannels && (run * item_bytes(dtype) >= 64 || run == shape.K * shape.I) &&
                      run * t.rows * item_bytes(dtype) <= 16 << 10 && plan.lanes <= cuda::kThreads && plan.lag >= 1 &&
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

void test_forward() {
  unsigned seed = 0;
  for (const auto& [c, setting] : cases()) {
    if (++seed % unsigned(every) != 0) continue;
    const Inputs in = random_inputs(c, seed);
    const PrologueNumbers pre = setting.prologue ? random_prologue(c, seed) : PrologueNumbers();
    Inputs seen = in;
    seen[X] = behind(pre, c, in[X]);
    const Results want = naive(c, seen);
    std::vector<Forwarded> first;
    const Schedule schedules[] = {{seed, 1, 3, true, false}, {seed + 1, 4, 5, false, false}, {seed + 2, 2, 2, false, true}};
    for (const Schedule& schedule : schedules) {
      // in place the alignment of x is that of y
      if (schedule.in_place && setting.x_offset != setting.y_offset) continue;
      if (schedule.in_place && c.gap != 0) continue;
      const std::string where = c.name() + " offsets " + std::to_string(setting.x_offset) + std::to_string(setting.y_offset) +
                                std::to_string(setting.residual_offset) + " tile " + std::to_string(setting.tile_bytes) +
                                " lag " + std::to_string(setting.lag) + (setting.prologue ? " prologue" : "") + ", " +
                                schedule.name();
      Forwarded out = run_forward(where, c, setting, schedule, in, pre);
      const double noise = c.dtype == Dtype::f64 ? 1e-14 : 4e-6;
      compare(where, Y, c, out.y, want[Y], noise);
      if (schedule.save && c.shape.O * c.shape.I == 0) {
        for (const double v : out.saved.values()) check(std::isnan(v), "%s: the mean of nothing is %g", where.c_str(), v);
        continue;
      }
      if (schedule.save) compare(where, SAVED, c, out.saved, want[SAVED], noise);
      if (!first.empty()) check(out.y.bytes == first[0].y.bytes, "%s: y has other bits", where.c_str());
      first.push_back(std::move(out));
    }
  }
}

void test_backward() {
  unsigned seed = 1000;
  for (const auto& [c, setting] : cases()) {
    if (++seed % unsigned(every) != 0 || c.shape.O == 0) continue;
    const Inputs in = random_inputs(c, seed);
    const Results want = naive(c, in);
    std::vector<std::vector<Output>> first;
    for (const Schedule& schedule : {Schedule{seed, 1, 3, true, false}, Schedule{seed + 1, 4, 5, true, false}}) {
      const std::string where = "backward of " + c.name() + " offsets " + std::to_string(setting.x_offset) +
                                std::to_string(setting.y_offset) + std::to_string(setting.residual_offset) + " tile " +
                                std::to_string(setting.tile_bytes) + ", " + schedule.name();
      first.push_back(run_backward(where, c, setting, schedule, in, want));
      for (int t = DX; t < kTensors; ++t) {
        // a tap's gradient is one sum over channels and images, and may cancel
        const double cancels = c.excitation == Excitation::channel_conv && t >= DW1 ? 16 : 1;
        compare(where, Tensor(t), c, first.back()[t], want[t], cancels * (c.dtype == Dtype::f64 ? 1e-14 : 4e-6));
        check(first.back()[t].bytes == first[0][t].bytes, "%s: %s has other bits", where.c_str(), kTensorNames[t]);
      }
    }
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (count > 1) every = std::max(1, std::atoi(arguments[1]));
  group("plan", test_plan);
  group("forward", test_forward);
  group("backward", test_backward);
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed ? 1 : 0;
}
