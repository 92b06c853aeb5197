// BatchNorm in training with SE, an addition and ReLU behind it, on the CPU. The caller brings the threads (team.h): each pass
// is called by every member of a team, and needs no barrier.
#pragma once
#include "se/cpu/kernels.h"
#include "se/cpu/team.h"

namespace senet {

// Maps are [B, O, K, I], dense, with O = 1 or I = 1; numbers are [B, K]. What each pass computes is beside NormKernels.
template <class A>
struct NormPasses {
  const NormKernels<A>& kernels;
  const Image image;
  const std::int64_t B;

  void moments(const Member& member, const A* x, A* mean, A* squares) const {
    over_channels(member, [&](std::int64_t map, std::int64_t number, std::int64_t begin, std::int64_t end) {
      kernels.moments(image, x + map, mean + number, squares + number, begin, end);
    });
  }
  void apply(const Member& member, const A* x, const A* mean, const A* scale, const A* shift, const A* residual, A* y) const {
    over_units(member, [&](std::int64_t map, std::int64_t number, std::int64_t begin, std::int64_t end) {
      kernels.apply(image, x + map, mean + number, scale + number, shift + number, residual + map, y + map, begin, end);
    });
  }
  void sums(const Member& member, const A* grad_y, const A* y, const A* x, const A* mean, A* grads, A* products) const {
    over_channels(member, [&](std::int64_t map, std::int64_t number, std::int64_t begin, std::int64_t end) {
      kernels.sums(image, grad_y + map, y + map, x + map, mean + number, grads + number, products + number, begin, end);
    });
  }
  void gradients(const Member& member, const A* grad_y, const A* y, const A* x, const A* mean, const A* scale, const A* slope,
                 const A* offset, A* grad_x, A* grad_residual) const {
    over_units(member, [&](std::int64_t map, std::int64_t number, std::int64_t begin, std::int64_t end) {
      kernels.gradients(image, grad_y + map, y + map, x + map, mean + number, scale + number, slope + number, offset + number,
                        grad_x + map, grad_residual + map, begin, end);
    });
  }

 private:
  // body(map, number, begin, end): where an image begins in maps and in numbers, and the member's range of it
  template <class Body>
  void over(const Member& member, std::int64_t width, std::int64_t grain, bool backwards, const Body& body) const {
    const auto part = [&](std::int64_t i, std::int64_t begin, std::int64_t end) {
      body(i * image.O * image.K * image.I, i * image.K, begin, end);
    };
    for_items(member, B, width, grain, part, backwards);
  }
  template <class Body>
  void over_channels(const Member& member, const Body& body) const {
    over(member, image.K, kGrain, false, body);
  }
  // From the last image to the first: the pass before took its sums in the other direction.
  template <class Body>
  void over_units(const Member& member, const Body& body) const {
    over(member, image.units(), image.by_rows() ? 1 : kGrain, true, body);
  }
};

}  // namespace senet
