// The time of a call by a model of an H100, which chooses between the kernels. No number of it was measured by us.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "se/cuda/plan.h"
#include "se/params.h"

namespace senet::cuda {

// All that is assumed of the machine: bytes and multiplications a microsecond, microseconds, shares.
struct Rates {
  double memory = 2.9e6;           // a large copy, what it reads and writes; 3.35e6 by the data sheet
  double l2 = 5.5e6;               // XLA's cost model has 6.65e6, measured within one half of the L2
  double processor = 70e3;         // of one processor; its 64 bytes a clock would be 109e3
  double multiplications = 102e3;  // of one processor, in small products: 60 of its 128 a clock
  double memory_latency = 0.45;    // from a load to its use; public microbenchmarks have 0.4 to 0.6
  double l2_latency = 0.2;         // the same from the L2; 0.15 in the near half, 0.2 and more in the far one
  double launch = 2.0;             // a kernel in a CUDA graph, beyond its bytes: start, ramp and end
  double next_launch = 0.6;        // each further one
  double job = 1.2;               // of tickets, beyond loads: barriers, sums of lanes, an atomic with its fence (each some 0.5)
  double exchange = 1.5;          // of a cluster: from the last bytes to the first store. One hand-off is 0.37 on sm_120
  double parts = 1.0, far = 0.5;  // more of it where blocks share channels; where a cluster has more than 8 blocks
  double cluster = 0.3;           // more for the launch of one
  double resident = 0.6;          // of the L2: tensors that fit into so much stay there from call to call
  double kept = 0.4;              // of the L2: what is read again before so much went through is still there
};

// Work of a call: tensors that go through memory once, and how many of them the ticket kernel reads a second time.
struct Traffic {
  double tensors, again;
};
inline Traffic traffic_of(const Params& p, bool backward) {
  const bool activated = backward && !p.epilogue.activation.is_identity();
  const double residual = p.epilogue.residual && (!backward || activated) ? 1 : 0;
  return {(backward ? 3.0 : 2.0) + residual + activated, 1};
}

// How often a thread waits for memory, of a block that sums, scales or multiplies: what is under way together counts once.
// They follow sums.cuh, tile.cuh and device.cuh.
namespace waits {

constexpr int kAhead = 4, kRows = 8;

inline double ceil_div(double a, double b) { return std::ceil(a / b); }

inline double sum(const Shape& shape, const Tiles& t, int lanes, const SumRoom& room, std::int64_t item, int threads) {
  const double items = 16.0 / static_cast<double>(item), vectors = std::max(1.0, t.columns / items);
  if (shape.I <= 1) {
    const double across = std::clamp(t.channels / items, 1.0, double(threads)), groups = std::floor(threads / across);
    return ceil_div(t.rows, groups * kAhead) * ceil_div(t.channels / items, across);
  }
  if (room.channels > 0) {
    const double channels = std::min(room.channels, t.channels);
    return ceil_div(t.channels, channels) * ceil_div(channels * vectors, double(threads) * kAhead);
  }
  const bool ends = shape.I % static_cast<std::int64_t>(items) != 0;  // before and behind the vectors of a plane
  return t.rows * ceil_div(t.channels, double(threads) / lanes) * (ceil_div(vectors, double(lanes) * kAhead) + 2 * ends);
}

inline double scale(const Tiles& t, std::int64_t item, int threads) {
  return ceil_div(double(t.channels) * t.rows * t.columns * double(item), 16.0 * threads * kAhead);
}

// multiply_rows()
inline double by_rows(double rows, double width, std::int64_t item, int threads, int rows_at_once = kRows) {
  const double items = 16.0 / static_cast<double>(item);
  double lanes = 1;
  while (lanes < 32 && lanes * items < width) lanes *= 2;
  return ceil_div(rows, threads / lanes * rows_at_once) * ceil_div(width, lanes * items);
}

// sum_columns() of a matrix, `items` columns to a thread and at most `most` rows side by side
inline double by_columns(double rows, double width, double items, int threads, double most) {
  const double across = std::clamp(width / items, 1.0, double(threads));
  const double groups = std::clamp(std::floor(threads / across), 1.0, std::max(1.0, std::min(most, ceil_div(rows, kRows))));
  return ceil_div(rows, groups * kRows) * ceil_div(width / items, across);
}

}  // namespace waits

struct Model {
  const Params& p;
  bool backward;
  const Gpu& gpu;
  Rates rates;
  double image, weights, products;  // bytes, bytes, multiplications of an image
  Traffic traffic;
  double batch, rate;  // images; where the tensors stream from: L2 or memory

  Model(const Params& p, bool backward, const Gpu& gpu) : p(p), backward(backward), gpu(gpu), traffic(traffic_of(p, backward)) {
    const auto [B, O, K, I, R] = p.shape;
    image = static_cast<double>(O * K * I * item_bytes(p.dtype));
    products = p.excitation == Excitation::two_fc   ? 2.0 * static_cast<double>(K * R)
               : p.excitation == Excitation::one_fc ? static_cast<double>(K * K)
                                                    : static_cast<double>(R * K);
    weights = p.excitation == Excitation::channel_conv ? 0 : products * static_cast<double>(item_bytes(p.weight_dtype));
    batch = static_cast<double>(B);
    rate = once() <= rates.resident * static_cast<double>(gpu.l2_bytes) ? rates.l2 : rates.memory;
  }

  double once() const { return traffic.tensors * image * batch; }

  // A kernel that moves these tensors and does nothing else; and `kernels` of them that move one tensor more, as Inductor's
  // three for a forward, which reads x twice.
  double copy() const { return rates.launch + once() / rate; }
  double unfused(int kernels) const {
    return rates.launch + (kernels - 1) * rates.next_launch + (traffic.tensors + 1) * image * batch / rate;
  }

  double ticket(const Plan& plan) const {
    const double tiles = plan.tiles.count(), all = image * batch, hidden = static_cast<double>(p.hidden());
    const double l2 = static_cast<double>(gpu.l2_bytes), in_flight = 2.0 * plan.blocks * image / tiles;
    const bool hit = in_flight <= rates.kept * l2 || rate == rates.l2;
    const double busy = std::min<double>(gpu.processors, batch * tiles);
    const double once_ = once(), twice = once_ + traffic.again * all + batch * weights;
    const double moved = std::max({(hit ? once_ : twice) / rate, (twice + 2 * batch * tiles * hidden * 4) / rates.l2,
                                   twice / (busy * rates.processor), batch * products / (busy * rates.multiplications)});
    // Each block does its jobs one after the other.
    const double first = rates.job +
                         from_memory() * waits::sum(p.shape, plan.tiles, plan.lanes, plan.room, item_bytes(p.dtype), kThreads) +
                         rates.l2_latency * products_of(plan, true);
    const double second = rates.job +
                          (hit ? rates.l2_latency : from_memory()) * waits::scale(plan.tiles, item_bytes(p.dtype), kThreads) +
                          rates.l2_latency * products_of(plan, false);
    const double join = rates.job + rates.l2_latency * waits::by_columns(tiles, hidden, 4, kThreads, 32);
    const double jobs = std::ceil(2 * batch * tiles / plan.blocks) * (first + second) / 2;
    const double last = weights_of(plan.blocks);
    return rates.launch + std::max(moved + from_memory() + rates.job, jobs) + join + last;
  }

  // Jobs of the gradients of the weights, and their time: image by image, four at once.
  double weight_jobs() const {
    if (!backward) return 0;
    return p.excitation == Excitation::channel_conv ? static_cast<double>(p.shape.R) + 1
                                                    : std::ceil(products / (4.0 * kThreads));
  }
  double weights_of(double blocks) const {
    return std::ceil(weight_jobs() / blocks) * (0.5 * rates.job + rates.l2_latency * std::ceil(batch / 4));
  }

  double from_memory() const { return rate == rates.l2 ? rates.l2_latency : rates.memory_latency; }

 private:
  // Waits of the products of a tile, in its first or in its second phase.
  double products_of(const Plan& plan, bool first) const {
    const double K = static_cast<double>(p.shape.K), R = static_cast<double>(p.shape.R), C = plan.tiles.channels;
    const std::int64_t item = item_bytes(p.weight_dtype);
    const double items = 16.0 / static_cast<double>(item);
    switch (p.excitation) {
      case Excitation::channel_conv:
        return first ? 0 : 1;
      case Excitation::one_fc:
        return first ? 0 : backward ? waits::by_columns(K, C, items, kThreads, 32) : waits::by_rows(C, K, item, kThreads);
      case Excitation::two_fc:
        break;
    }
    if (backward) return first ? waits::by_columns(C, R, items, kThreads, 32) : waits::by_columns(R, C, items, kThreads, 32);
    return first ? waits::by_rows(R, C, item, kThreads) : waits::by_rows(C, R, item, kThreads);
  }
};

// The ticket kernel's, with blocks for the gradients of the weights.
inline Plan plan(const Params& p, bool backward, const Gpu& gpu) {
  return plan(p.shape, p.dtype, gpu, {}, static_cast<std::int64_t>(Model(p, backward, gpu).weight_jobs()));
}

}  // namespace senet::cuda
