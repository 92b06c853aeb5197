// How the cluster kernels cut the work: a pure function of shape, types and GPU, like the ticket kernels' plan.h, and the
// choice between the two by model.h. Nothing of CUDA here.
//
// A cluster works on one or a few images. Each of its blocks keeps a slice of each in shared memory, so x is read once; what an
// image's squeeze and excitation need of each other goes from shared memory to shared memory.
#pragma once
#include <string_view>

#include "se/cuda/model.h"

namespace senet::cuda {

// Of a block, at most: one such block, or two of half as many threads, fill a processor's registers.
constexpr int kClusterThreads = 512;
constexpr int kClusterImages = 4;   // at the same time, at most
constexpr int kClusterChunks = 16;  // of a slice, at most
constexpr int kRunScratch = 4;      // numbers of scratch a thread, at least, for sums by runs

// A slice is a run of memory: channels of all columns, or rows of all channels, or columns of one channel. It arrives in
// chunks, which are cut from it in the same way.
struct ClusterPlan {
  int size = 0;  // blocks of a cluster; 0: the ticket kernel
  int threads = kClusterThreads;
  int images = 1;
  Tiles slices;  // of an image; blocks behind the last are idle
  int lanes = 1;
  SumRoom room;  // of backward, whose x is not in shared memory
  int chunk_channels = 1, chunk_rows = 1, chunk_columns = 1, chunks = 1;
  int shared_bytes = 0;
  int clusters = 0;
  double microseconds = 0;  // by the model

  explicit operator bool() const { return size > 0; }
  std::int64_t chunk_elements() const { return std::int64_t{1} * chunk_channels * chunk_rows * chunk_columns; }
};

// Channels that blocks own, whose gates they compute: a slice's channels, or where `parts` slices have the same channels, a
// part of them. Counted in fours, which is what goes to another block at once.
constexpr int fours(std::int64_t n) { return static_cast<int>((n + 3) / 4); }

// Where everything is in a block's shared memory, in bytes. Vectors of floats are padded to fours.
struct ClusterSpace {
  int barriers, sums, gates, shifts, owned, from_parts, out, from_all, all, mixed, scratch, slices;
  int channels, own, out_width, all_width, slice_bytes;  // widths of the vectors, in floats, for one image
  int total;
};

inline ClusterSpace space_of(const Params& p, const ClusterPlan& plan, bool backward) {
  const Tiles& t = plan.slices;
  const int item = static_cast<int>(item_bytes(p.dtype)), images = plan.images, parts = t.parts();
  const bool two_fc = p.excitation == Excitation::two_fc;
  ClusterSpace s{};
  s.channels = 4 * fours(t.channels);
  s.own = 4 * ((fours(t.channels) + parts - 1) / parts);
  s.out_width = two_fc ? 4 * fours(p.shape.R) : s.own;
  s.all_width = 4 * fours(two_fc ? p.shape.R : p.shape.K);
  int at = 0;
  const auto take = [&](std::int64_t bytes) {
    const int from = at;
    at += static_cast<int>((bytes + 15) / 16 * 16);
    return from;
  };
  const auto take_floats = [&](std::int64_t n) { return take(n * 4); };
  s.barriers = take(8 * (plan.chunks * images + 4));
  s.sums = take_floats(images * s.channels);
  s.gates = take_floats(images * s.channels);
  s.shifts = backward ? take_floats(images * s.channels) : s.gates;
  s.owned = parts > 1 ? take_floats(images * s.own) : s.sums;
  s.from_parts = parts > 1 ? take_floats(parts * images * s.own) : at;
  s.out = two_fc ? take_floats(images * s.out_width) : s.owned;
  s.from_all = take_floats(std::int64_t{2} * t.count() * images * s.out_width);
  s.all = take_floats(images * s.all_width);
  // sums over rows of weights, for all images of the widest kernel, and what groups of threads add up
  const std::int64_t wide = images > 1 ? kClusterImages : 1;
  s.mixed = backward ? take_floats(wide * std::max<std::int64_t>(two_fc ? p.shape.R : 0, s.own)) : at;
  const std::int64_t columns = p.shape.I > 1 ? plan.threads / 16 : plan.threads * (16 / item);
  s.scratch = take_floats(std::max(columns, backward ? (plan.room.channels > 0 ? kRunScratch : wide) * plan.threads : 0));
  at = (at + 127) / 128 * 128;
  s.slices = at;
  const std::int64_t slice = std::int64_t{1} * t.channels * t.rows * t.columns * item;
  s.slice_bytes = static_cast<int>((slice + 16 + 127) / 128 * 128);  // it begins as far behind a boundary as in memory
  const std::int64_t total = std::int64_t{at} + std::int64_t{images} * s.slice_bytes;
  s.total = total < (std::int64_t{1} << 30) ? static_cast<int>(total) : 1 << 30;
  return s;
}

// The slices of clusters of `size` blocks; false if an image cannot be cut so.
inline bool slice(const Shape& shape, std::int64_t item, int size, Tiles& out) {
  const auto ceil_div = [](std::int64_t a, std::int64_t b) { return static_cast<int>((a + b - 1) / b); };
  const auto [B, O, K, I, R] = shape;
  if (O * K * I / size * item > (1 << 20) || O * I == 0) return false;
  if (O > 1) {
    const int rows = ceil_div(O, size);
    out = {static_cast<int>(K), rows, static_cast<int>(I), 1, ceil_div(O, rows), 1};
    return O >= size;
  }
  if (K >= size) {
    int channels = ceil_div(K, size), aligned = 16 / static_cast<int>(item);
    while (aligned * I * item % 16 != 0) aligned *= 2;
    // slices and weights begin at a boundary of 16 bytes, if they are almost even then
    const int rounded = ceil_div(channels, aligned) * aligned;
    if (rounded * 8 <= channels * 9) channels = rounded;
    out = {channels, 1, static_cast<int>(I), ceil_div(K, channels), 1, 1};
    return true;
  }
  const int parts = size / static_cast<int>(K), vector = 16 / static_cast<int>(item);
  const int columns = ceil_div(ceil_div(I, parts), vector) * vector;
  out = {1, 1, static_cast<int>(std::min<std::int64_t>(columns, I)), static_cast<int>(K), 1, ceil_div(I, columns)};
  return out.column_tiles > 1;  // else a smaller cluster does the same
}

// Everything but clusters and time, of clusters of `size` blocks with `images` images; false if there is none. Tests choose the
// bytes of a chunk.
inline bool cut_cluster(const Params& p, bool backward, int size, int threads, int images, ClusterPlan& out,
                        std::int64_t chunk_bytes = 0) {
  out = {};
  const std::int64_t item = item_bytes(p.dtype);
  if (p.dtype == Dtype::f64 || p.shape.B == 0 || !slice(p.shape, item, size, out.slices)) return false;
  out.size = size, out.threads = threads, out.images = images;
  const Tiles& t = out.slices;
  const int columns = t.columns;
  out.lanes = columns >= 256 ? 32 : columns >= 32 ? 8 : columns >= 8 ? 4 : 1;
  while (out.lanes < threads && out.lanes * t.channels < threads) out.lanes *= 2;
  if (backward) out.room = sum_room(p.shape, t, item, threads * kRunScratch);
  // chunks of an axis: rows, channels or columns, whichever the slice has several of
  const std::int64_t elements = std::int64_t{1} * t.rows * t.channels * t.columns;
  const std::int64_t wanted = chunk_bytes ? chunk_bytes : std::max<std::int64_t>(4 << 10, elements * item / 12);
  const auto cut_axis = [&](int n, std::int64_t unit) {
    const std::int64_t of_chunk = std::clamp<std::int64_t>(wanted / (unit * item), 1, n);
    return static_cast<int>(std::max<std::int64_t>(of_chunk, (n + kClusterChunks - 1) / kClusterChunks));
  };
  out.chunk_rows = t.rows > 1 ? cut_axis(t.rows, std::int64_t{t.channels} * t.columns) : 1;
  out.chunk_channels = t.rows == 1 && t.channels > 1 ? cut_axis(t.channels, t.columns) : t.channels;
  out.chunk_columns = t.rows == 1 && t.channels == 1 ? cut_axis(t.columns, 1) : t.columns;
  out.chunks = static_cast<int>((elements + out.chunk_elements() - 1) / out.chunk_elements());
  if (out.chunk_elements() * item > 1 << 19) return false;  // more than a barrier counts
  const ClusterSpace space = space_of(p, out, backward);
  // what one barrier counts of a vector from all blocks
  if (std::int64_t{4} * t.count() * images * space.out_width >= 1 << 20) return false;
  if (std::int64_t{4} * images * space.channels * t.parts() >= 1 << 20) return false;
  out.shared_bytes = space.total;
  return true;
}

// How often a thread waits for weights, beyond the two times that the exchange has.
inline double waits_of_products(const Model& m, const ClusterPlan& plan) {
  const Params& p = m.p;
  if (p.excitation == Excitation::channel_conv) return 0;
  const double owned = std::ceil(double(plan.slices.channels) / plan.slices.parts());
  const double R = static_cast<double>(p.excitation == Excitation::two_fc ? p.shape.R : p.shape.K);
  const bool both = p.excitation == Excitation::two_fc;
  const std::int64_t item = item_bytes(p.weight_dtype);
  const int rows = plan.images > 1 ? 4 : waits::kRows;
  const double waits = m.backward ? waits::by_columns(R, owned, 1, plan.threads, plan.threads) +
                                        (both ? waits::by_columns(owned, R, 1, plan.threads, plan.threads) : 0)
                                  : waits::by_rows(owned, R, item, plan.threads, rows) +
                                        (both ? waits::by_rows(R, owned, item, plan.threads, rows) : 0);
  return std::max(0.0, waits - 2);
}

// The time of a plan, by the model.
inline double cluster_time(const Model& m, const ClusterPlan& plan) {
  const Rates& rates = m.rates;
  const double size = plan.size, batches = std::ceil(m.batch / plan.images), waves = std::ceil(batches / plan.clusters);
  const double running = std::min<double>(plan.clusters, batches);
  const double share = std::max(1.0, running * size / m.gpu.processors);  // blocks of a processor
  const int multiplied = plan.images > 1 ? kClusterImages : 1;            // the kernel for several works as for all of them
  const double products =
      std::max(multiplied * m.products / size / rates.multiplications * share, m.weights / size / rates.processor);
  const double exchange = rates.exchange + (plan.slices.parts() > 1 ? rates.parts : 0) + (plan.size > 8 ? rates.far : 0) +
                          products + rates.l2_latency * waits_of_products(m, plan);
  const double slice = m.image / plan.slices.count();
  const double moved = m.traffic.tensors * plan.images * slice * share / rates.processor;
  const double once = m.once(), last = m.backward ? rates.next_launch + m.weights_of(m.gpu.processors * kResident) : 0;
  return rates.launch + last + (plan.size > 1 ? rates.cluster : 0) +
         std::max({waves * (m.from_memory() + moved + exchange), once / m.rate + exchange,
                   (once + batches * m.weights) / rates.l2 + exchange});
}

// The cluster must be this much faster by the model: where they are close, the kernel that asks less of a GPU runs.
constexpr double kClusterGain = 0.9;

// active(plan): clusters that fit the GPU at the same time; 0 if none, or if it has none.
template <class Active>
ClusterPlan plan_cluster(const Params& p, bool backward, const Gpu& gpu, bool several_images, const Active& active) {
  const Model model(p, backward, gpu);
  ClusterPlan best;
  for (const int size : {1, 2, 4, 8, 16}) {
    for (int images = 1; images <= (several_images ? kClusterImages : 1) && images <= p.shape.B; ++images) {
      for (const int threads : {kClusterThreads, kClusterThreads / 2}) {
        ClusterPlan plan;
        if (!cut_cluster(p, backward, size, threads, images, plan) || plan.shared_bytes > gpu.shared_bytes) continue;
        plan.clusters = static_cast<int>(std::min<std::int64_t>((p.shape.B + images - 1) / images, active(plan)));
        if (plan.clusters <= 0) continue;
        plan.microseconds = cluster_time(model, plan);
        if (!best || plan.microseconds < best.microseconds - 0.05) best = plan;
      }
    }
  }
  return best;
}

enum class Kernel : std::uint8_t { automatic, ticket, cluster };
constexpr const char* kKernelNames[] = {"auto", "ticket", "cluster"};
inline bool kernel_named(std::string_view name, Kernel& out) {
  for (const Kernel kernel : {Kernel::automatic, Kernel::ticket, Kernel::cluster}) {
    if (name == kKernelNames[static_cast<int>(kernel)]) return out = kernel, true;
  }
  return false;
}

// The cluster kernel, where that is chosen before a ticket kernel's plan, or is wanted; no size where it is not or cannot be.
template <class Active>
ClusterPlan choose(const Params& p, bool backward, const Gpu& gpu, Kernel wanted, bool several_images, const Active& active,
                   const Plan& ticket) {
  if (wanted == Kernel::ticket) return {};
  const ClusterPlan best = plan_cluster(p, backward, gpu, several_images, active);
  const double other = Model(p, backward, gpu).ticket(ticket);
  return wanted == Kernel::cluster || best.microseconds < kClusterGain * other ? best : ClusterPlan{};
}

// Clusters that are active on an H100 in public reports, for planning without one: whole clusters fit only into a GPC.
inline int h100_clusters(const ClusterPlan& plan) {
  const int size = plan.size,
            per_processor = std::min(kClusterThreads / plan.threads, (228 << 10) / (plan.shared_bytes + 1024));
  const int alone = size == 1 ? 132 : size == 2 ? 66 : size == 4 ? 32 : size == 8 ? 15 : 7;
  return alone * per_processor;
}

}  // namespace senet::cuda
