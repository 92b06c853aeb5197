// How the work is cut: a pure function of shape, type and caches.
#pragma once
#include <algorithm>
#include <cstdint>

#include "se/cpu/kernels.h"

namespace senet {

struct Plan {
  std::int64_t images_per_tile;  // images squeezed together, then scaled while they are still in cache
  std::int64_t rows_per_block;   // by rows: rows summed together; the blocks are then joined in pairs
  std::int64_t blocks;           // of rows in an image
};

// cache_bytes: what the threads together can keep close.
// Only images_per_tile depends on it, and no sum crosses images: results are the same bits on every machine.
inline Plan plan(const Shape& shape, std::int64_t item_bytes, std::int64_t weight_bytes, std::int64_t cache_bytes) {
  const std::int64_t image_bytes = std::max<std::int64_t>(1, shape.O * shape.K * shape.I * item_bytes);
  const std::int64_t in_cache = cache_bytes / image_bytes;
  // heavy weights are worth a larger tile: they are read once for all of its images
  const std::int64_t for_weights = std::min<std::int64_t>(16, weight_bytes / image_bytes);
  Plan plan;
  plan.images_per_tile = std::clamp<std::int64_t>(std::max(in_cache, for_weights), 1, std::max<std::int64_t>(1, shape.B));
  // at most 16k elements a block: enough for many threads; few rows, because they are added one after another
  plan.rows_per_block = std::clamp<std::int64_t>(16384 / std::max<std::int64_t>(1, shape.K), 8, 128);
  plan.blocks = shape.I == 1 ? std::max<std::int64_t>(1, (shape.O + plan.rows_per_block - 1) / plan.rows_per_block) : 1;
  return plan;
}

}  // namespace senet
