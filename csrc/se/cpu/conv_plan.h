// How a 1x1 convolution with a gate is cut: a pure function of shape, types and machine. No sum depends on it.
#pragma once
#include <algorithm>
#include <cstdint>

#include "se/cpu/plan.h"

namespace senet {

constexpr std::int64_t kConvTile = 64;  // pixels of a tile at the most; output channels come in multiples of it

struct ConvPlan : Plan {      // images_per_tile: squeezed and excited together, then multiplied while they are still close
  std::int64_t pixels;        // of a tile
  std::int64_t tiles;         // of an image
  std::int64_t across;        // parts of the output channels, each for other threads; threads / across share out the tiles
  std::int64_t channels;      // of a block, which is multiplied, finished and stored at once
  std::int64_t tiles_a_pass;  // over which a block of weights is kept in the cache
  const char *images_because, *across_because, *pass_because;

  // Tiles of so many pixels; where these are columns, or rows of AMX's tiles, whole ones.
  void cut(std::int64_t wanted, const ConvParams& p, const ProductKernels& product) {
    pixels = p.by_pixels && product.per_step < 32 ? wanted : (wanted + 15) / 16 * 16;
    tiles = (p.pixels() + pixels - 1) / pixels;
  }
};

// Why the fused kernel is not the right one, and today's op and a convolution are; null where it is.
inline const char* not_fused(Dtype dtype, std::int64_t pixels, const ProductKernels& product, bool torch_has_amx) {
  if (dtype == Dtype::bf16 && product.per_step < 32 && torch_has_amx)
    return "torch's own convolution of bfloat16 uses AMX, which these kernels do not";
  if (pixels < 8) return "maps of fewer than 8 pixels: one product over all images is faster";
  return nullptr;
}
// The same for a call whose weights are not prepared. Packing them took as long as the products of some 190 pixels, and each of
// the `outputs` of the excitation's first layer that takes in the convolution as long as those of 10 (one thread of a Zen 5).
inline const char* not_worth_preparing(const Shape& shape, std::int64_t outputs) {
  if (shape.B * shape.O * shape.I < 4 * (190 + 10 * outputs))
    return "nothing is prepared, and preparing would take more than a fourth of the convolution's time";
  return nullptr;
}

inline ConvPlan plan_conv(const ConvParams& p, const ProductKernels& product, const Machine& machine) {
  const std::int64_t B = std::max<std::int64_t>(1, p.shape.B), P = p.pixels(), K = p.shape.K, N = p.C_out;
  const std::int64_t item = item_bytes(product.multiplied), x_bytes = P * K * item_bytes(p.dtype), weights = N * K * item;
  const std::int64_t near = machine.near_bytes / machine.threads, blocks = (N + kConvTile - 1) / kConvTile;
  ConvPlan plan{};
  static_cast<Plan&>(plan) = senet::plan(p.shape, {item_bytes(p.dtype), 0, 0}, machine);
  const std::int64_t outputs = B * P * N * (p.epilogue.residual ? 2 : 1);
  plan.stream = (B * P * K + outputs) * item_bytes(p.dtype) > machine.stream_forward_bytes;
  plan.overlap = false;
  // A thread is worth starting for 2^20 multiplications: some 10 us.
  plan.threads = std::clamp<std::int64_t>(B * P * K * N >> 20, 1, machine.threads);
  const std::int64_t close = std::clamp<std::int64_t>(machine.near_bytes * 3 / 4 / x_bytes, 1, B),
                     groups = (B + close - 1) / close;
  plan.images_per_tile = (B + groups - 1) / groups;
  plan.images_because = plan.images_per_tile == B ? "x of all images fits the caches"
                                                  : "as many images as fit the caches between the squeeze and the product";
  const std::int64_t most = plan.images_per_tile * std::max<std::int64_t>(1, P / 16);  // tiles that are worth making
  // Sharing out the channels also where the weights are more than one cache holds gained nothing: x is then prepared twice.
  plan.across = 1;
  for (std::int64_t parts = 2; parts <= std::min(plan.threads, blocks) && plan.across * most < plan.threads; ++parts) {
    if (plan.threads % parts == 0) plan.across = parts;
  }
  plan.across_because =
      plan.across == 1 ? "each thread takes tiles of pixels with all channels" : "there are fewer tiles than threads";
  const std::int64_t down = plan.threads / plan.across, least = (P + kConvTile - 1) / kConvTile;
  plan.tiles = least;
  for (std::int64_t tiles = least; tiles < least + down && P / tiles >= 16; ++tiles) {
    if (plan.images_per_tile * tiles % down == 0) {
      plan.tiles = tiles;
      break;
    }
  }
  plan.cut((P + plan.tiles - 1) / plan.tiles, p, product);
  // By pixels a residual has rows of channels: pieces of 128 bytes of them, from memory, took twice as long as whole rows.
  // Without one narrow blocks are better: their sums stay in L1.
  plan.channels = p.by_pixels && p.epilogue.residual ? 4 * kConvTile : kConvTile;
  plan.tiles_a_pass = 1;
  plan.pass_because = "the weights stay in the cache from tile to tile";
  if (weights / plan.across > near / 2) {
    const std::int64_t together = near / 2 / (plan.pixels * K * item), fit = near / 2 / (K * item) / kConvTile * kConvTile;
    plan.tiles_a_pass = std::clamp<std::int64_t>(together, 1, plan.images_per_tile * plan.tiles);
    plan.channels = std::clamp(fit, kConvTile, plan.channels);
    plan.pass_because = "the weights do not stay in the cache: a block of them is used for several tiles of a prepared x";
  }
  return plan;
}

}  // namespace senet
