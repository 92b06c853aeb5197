// The threads that run one call. All run the same code, each on its part of every step, and wait for each other in between.
#pragma once
#include <algorithm>
#include <cstdint>

namespace senet {

struct Range {
  std::int64_t begin, end;

  std::int64_t size() const { return end - begin; }
};

struct Member {
  std::int64_t rank = 0, size = 1;
  void (*barrier)(void* team) = nullptr;
  void* team = nullptr;

  void wait() const {
    if (size > 1) barrier(team);
  }
  // This member's part of n items; parts begin at multiples of `grain`.
  Range part(std::int64_t n, std::int64_t grain = 1) const { return part_of(n, grain, rank, size); }

  struct Block {
    Range rows, columns;
  };
  // Its part of a matrix: columns are shared out in multiples of `grain`; rows only where there are more members than that.
  Block block(std::int64_t rows, std::int64_t columns, std::int64_t grain) const {
    const std::int64_t across = std::clamp<std::int64_t>((columns + grain - 1) / grain, 1, size), down = size / across;
    if (rank >= across * down) return {{0, 0}, {0, 0}};
    return {part_of(rows, 1, rank / across, down), part_of(columns, grain, rank % across, across)};
  }

 private:
  static Range part_of(std::int64_t n, std::int64_t grain, std::int64_t rank, std::int64_t size) {
    const std::int64_t grains = (n + grain - 1) / grain;
    return {std::min(n, grains * rank / size * grain), std::min(n, grains * (rank + 1) / size * grain)};
  }
};

constexpr std::int64_t kGrain = 16;  // channels: whole vectors, and no line of sums that two threads write

// body(image, begin, end): the member's part of `width` items in each of B images; from the last image to the first where
// the items were just read in the other direction
template <class Body>
void for_items(const Member& member, std::int64_t B, std::int64_t width, std::int64_t grain, const Body& body,
               bool backwards = false) {
  const Range part = member.part(B * width, grain);
  if (part.size() == 0) return;
  const std::int64_t first = part.begin / width, images = (part.end + width - 1) / width - first;
  for (std::int64_t j = 0; j < images; ++j) {
    const std::int64_t i = backwards ? first + images - 1 - j : first + j;
    body(i, std::max(part.begin - i * width, std::int64_t{0}), std::min(part.end - i * width, width));
  }
}

}  // namespace senet
