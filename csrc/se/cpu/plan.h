// How the work is cut: a pure function of shape, types and machine.
#pragma once
#include <algorithm>
#include <cstdint>

#include "se/cpu/kernels.h"
#include "se/cpu/machine.h"

namespace senet {

struct Work {
  std::int64_t item_bytes, weight_bytes, stream_bytes;
  std::int64_t tensors = 2;   // of the shape of x, read or written
  std::int64_t squeezed = 1;  // of these, those that the squeeze passes through the cache
};

struct Plan {
  std::int64_t threads;
  std::int64_t images_per_tile;  // images squeezed together, then scaled while they are still close
  std::int64_t rows_per_block;   // by rows: rows summed together; the blocks are then joined in pairs
  std::int64_t blocks;           // of rows in an image
  bool stream;                   // the output goes past the caches
  bool overlap;                  // forward: a tile is scaled in the loop that squeezes the next one
};

// Threads for a call that moves so many bytes: starting a team and its barriers take the time in which one thread gets through
// some 200 kB.
inline std::int64_t threads_for(std::int64_t bytes, const Machine& machine) {
  return std::clamp<std::int64_t>(bytes / (128 << 10), 1, machine.threads);
}

// threads, images_per_tile, stream and overlap decide who does what when; no sum depends on them.
inline Plan plan(const Shape& shape, const Work& work, const Machine& machine) {
  const std::int64_t image_bytes = std::max<std::int64_t>(1, shape.O * shape.K * shape.I * work.item_bytes);
  const std::int64_t bytes = shape.B * image_bytes * work.tensors;
  Plan plan;
  plan.threads = threads_for(bytes + work.weight_bytes, machine);
  plan.stream = bytes > work.stream_bytes;
  // A tile leaves some room for the rest. Heavy weights are worth a larger one: they are read once for all of its images,
  // and the matrix products take four images at a time.
  const std::int64_t close = machine.near_bytes * 3 / 4 / (image_bytes * work.squeezed);
  const std::int64_t for_weights = std::min<std::int64_t>(16, (2 * work.weight_bytes / image_bytes + 3) / 4 * 4);
  const std::int64_t tile = std::max(close, for_weights);
  plan.images_per_tile = std::clamp<std::int64_t>(tile < 4 ? tile : tile / 4 * 4, 1, std::max<std::int64_t>(1, shape.B));
  // What fits into a fast L3 is one tile: weights are read once, and the threads meet least often. What does not comes from
  // memory while the tile before it goes back there.
  const bool fits = bytes + work.weight_bytes <= machine.shared_bytes;
  if (fits) plan.images_per_tile = std::max<std::int64_t>(1, shape.B);
  plan.overlap = machine.shared_bytes > 0 && !fits && plan.images_per_tile < shape.B;
  // at most 16k elements a block: enough for many threads; few rows, because they are added one after another
  plan.rows_per_block = std::clamp<std::int64_t>(16384 / std::max<std::int64_t>(1, shape.K), 8, 128);
  plan.blocks = shape.I == 1 ? std::max<std::int64_t>(1, (shape.O + plan.rows_per_block - 1) / plan.rows_per_block) : 1;
  return plan;
}

}  // namespace senet
