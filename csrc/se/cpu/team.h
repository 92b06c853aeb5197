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

}  // namespace senet
