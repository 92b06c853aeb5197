// How the ticket kernels cut the work: a pure function of shape, types and GPU. Nothing of CUDA here.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "se/params.h"

namespace senet::cuda {

constexpr int kThreads = 256;       // of a block
constexpr int kResident = 2;        // blocks a processor, which leaves each thread registers for its loads in flight
constexpr int kMaxChannels = 1024;  // of a tile

// What the planner must know of a GPU. The defaults are an H100's, for tests and questions.
struct Gpu {
  int processors = 132;
  int blocks_per_processor = kResident;  // of the kernel in question, as the driver says
  std::int64_t l2_bytes = 50 << 20;
  int shared_bytes = 227 << 10;  // of a block, at most
};

// Tiles of an image [O, K, I]: channels of K, rows of O, columns of I. At the end of an axis they may be smaller. Columns are
// cut only where a tile is one channel and one row, so that a row of a tile is always one run of memory.
struct Tiles {
  int channels = 1, rows = 1, columns = 1;
  int channel_tiles = 1, row_tiles = 1, column_tiles = 1;

  int parts() const { return row_tiles * column_tiles; }  // tiles that share their channels
  int count() const { return channel_tiles * parts(); }
};

// For a sum that goes through a tile as one run of memory: channels at a time, 0 where planes are summed one by one; and
// vectors, of which each leaves two numbers in scratch.
struct SumRoom {
  int channels = 0, vectors = 0;
};

struct Plan {
  Tiles tiles;
  int lanes = 1;  // threads that sum a channel where I > 1; a power of two
  SumRoom room;
  int lag = 1;  // images whose tiles are squeezed before the first is scaled
  int blocks = 1;
};

// The cut of an image does not depend on the batch: neither do the bits of the result.
inline Tiles cut(const Shape& shape, std::int64_t item, std::int64_t tile_bytes) {
  const auto ceil_div = [](std::int64_t a, std::int64_t b) { return (a + b - 1) / b; };
  const std::int64_t tile = tile_bytes / item, O = std::max<std::int64_t>(1, shape.O), I = std::max<std::int64_t>(1, shape.I);
  // A run of a tile is a line of 128 bytes or more, where the image allows it, and begins where a vector of the weights does.
  const std::int64_t line = ceil_div(std::max<std::int64_t>(1, 128 / (item * I)), 8) * 8;
  std::int64_t channels = std::clamp<std::int64_t>(tile / (O * I), I * item < 128 ? line : 1, kMaxChannels);
  if (channels >= shape.K) {
    channels = std::min<std::int64_t>(shape.K, kMaxChannels);
  } else if (channels >= 8) {  // tiles of about the same size
    const std::int64_t unit = channels >= line ? line : 8;
    channels = channels / unit * unit;
    channels = std::min(channels, ceil_div(ceil_div(shape.K, ceil_div(shape.K, channels)), unit) * unit);
  } else {
    while ((channels & (channels - 1)) != 0) --channels;  // with all threads at work in each
  }
  const std::int64_t rows = std::clamp<std::int64_t>(tile / (channels * I), 1, O);
  const std::int64_t columns = channels == 1 && rows == 1 ? std::min(I, tile) : I;
  return {static_cast<int>(channels),          static_cast<int>(rows),
          static_cast<int>(columns),           static_cast<int>(ceil_div(shape.K, channels)),
          static_cast<int>(ceil_div(O, rows)), static_cast<int>(ceil_div(I, columns))};
}

// Bytes of a tile. A tile of every resident block, squeezed and not yet scaled, twice over must stay in the L2: of 40 MB and
// more (A100, H100) two fifths. A small image is a dozen tiles, if they are not too small: one image is the work of as many
// blocks.
inline std::int64_t tile_bytes(const Shape& shape, std::int64_t item, const Gpu& gpu) {
  constexpr std::int64_t kLeast = 8 << 10;
  const std::int64_t most = gpu.l2_bytes >= (36 << 20) ? 32 << 10 : gpu.l2_bytes >= (20 << 20) ? 16 << 10 : kLeast;
  return std::clamp(shape.O * shape.K * shape.I * item / 12, kLeast, most);
}

// Numbers of scratch a thread of the ticket kernels.
constexpr int scratch_of(std::int64_t item) { return item == 8 ? 4 : 16; }

// Worth it where planes do not begin at boundaries of 16 bytes, or have no four vectors for each of 16 lanes; possible where a
// vector has elements of two channels at most, and a tile is one run.
inline SumRoom sum_room(const Shape& shape, const Tiles& tiles, std::int64_t item, int scratch) {
  const std::int64_t items = 16 / item, I = shape.I;
  if (tiles.rows > 1 || tiles.column_tiles > 1 || I < items || (I % items == 0 && I >= 64 * items)) return {};
  SumRoom room;
  room.vectors = static_cast<int>((scratch - 2 * items) / 2);  // the ends of the run have numbers of their own
  room.channels = static_cast<int>(std::max<std::int64_t>(0, (room.vectors - 1) * items / I));
  return room;
}

// What tests choose: threads of a block, a power of two; bytes of a tile, 0 for the planner's.
struct Forced {
  int threads = kThreads;
  std::int64_t tile_bytes = 0;
};

// last: jobs behind those of the images.
inline Plan plan(const Shape& shape, Dtype dtype, const Gpu& gpu, const Forced& forced = {}, std::int64_t last = 0) {
  Plan plan;
  const bool small_cache = gpu.l2_bytes < (20 << 20);
  const std::int64_t item = item_bytes(dtype);
  plan.tiles = cut(shape, item, forced.tile_bytes ? forced.tile_bytes : tile_bytes(shape, item, gpu));
  const int columns = plan.tiles.columns;
  plan.lanes = columns >= 256 ? 32 : columns >= 32 ? 8 : columns >= 8 ? 4 : 1;
  while (plan.lanes < forced.threads && plan.lanes * plan.tiles.channels < forced.threads) plan.lanes *= 2;
  plan.room = sum_room(shape, plan.tiles, item, forced.threads * scratch_of(item));
  const int resident = gpu.processors * (small_cache ? std::min(2, gpu.blocks_per_processor) : gpu.blocks_per_processor);
  const std::int64_t tiles = plan.tiles.count();
  // as many images ahead as keep all blocks busy: in the steady state nobody waits
  plan.lag = static_cast<int>(std::min(shape.B, (resident + tiles - 1) / tiles));
  const std::int64_t jobs = std::max(2 * tiles * std::max<std::int64_t>(1, shape.B), last);
  plan.blocks = static_cast<int>(std::min<std::int64_t>(resident, jobs));
  return plan;
}

// Tickets are counted in 32 bits, with room for each block's last.
inline bool fits_one_launch(const Plan& plan, std::int64_t images) {
  return images <= (std::int64_t{1} << 30) / plan.tiles.count();
}

constexpr int kHeaderCounters = 4;  // in front of one for each image
inline std::int64_t counters_of(std::int64_t images) { return kHeaderCounters + images; }

// Scratch behind one pointer: take(n) is the next n numbers. Without the pointer it only counts.
class Scratch {
 public:
  Scratch(void* begin, Dtype dtype) : begin_(static_cast<char*>(begin)), item_(dtype == Dtype::f64 ? 8 : 4) {}

  void* take(std::int64_t n) {
    const std::int64_t at = bytes_;
    bytes_ += (n * item_ + 15) / 16 * 16;
    return begin_ ? begin_ + at : nullptr;
  }
  std::int64_t bytes() const { return bytes_; }

 private:
  char* begin_;
  std::int64_t item_, bytes_ = 0;
};

}  // namespace senet::cuda
