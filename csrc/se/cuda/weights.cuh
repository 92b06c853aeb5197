// The gradients of the weights: each number by one thread, image by image, so that no bit depends on the order of blocks.
#pragma once
#include "se/cuda/backward_parts.cuh"

namespace senet::cuda {

// Gradients of a matrix of weights: columns go to the threads of a block, as do groups of kWeightRows rows.
constexpr int kWeightRows = 4;
struct WeightTiles {
  int across, rows, row_tiles, column_tiles;  // columns and rows of a tile

  SENET_HOST_DEVICE WeightTiles(int M, int N, int threads)
      : across(N < threads ? N : threads),
        rows(threads / across * kWeightRows),
        row_tiles((M + rows - 1) / rows),
        column_tiles((N + across - 1) / across) {}
  SENET_HOST_DEVICE int count() const { return row_tiles * column_tiles; }
};

// Jobs, each for one block of `threads`.
inline int weight_jobs(const BackwardParams& p, int threads) {
  const int k = static_cast<int>(p.shape.K), r = static_cast<int>(p.shape.R);
  const bool first = p.grad_fc1_weight || p.grad_fc1_bias, second = p.grad_fc2_weight || p.grad_fc2_bias;
  if (p.excitation == Excitation::channel_conv) return first ? r + 1 : 0;  // the last for the bias
  const bool two_fc = p.excitation == Excitation::two_fc;
  return (first ? WeightTiles(two_fc ? r : k, k, threads).count() : 0) +
         (two_fc && second ? WeightTiles(k, r, threads).count() : 0);
}

template <class T, class W>
struct WeightGradients {
  using A = Sum<T>;

  const BackwardCall& call;
  const WeightSums& sums;
  int images;
  double* warps;  // in shared memory, for one number a warp

  SENET_DEVICE void run(int job) const {
    const BackwardParams& p = call.p;
    const int K = call.image.K, R = call.image.R;
    const A *grad_gate = static_cast<const A*>(sums.grad_gate), *squeezed = static_cast<const A*>(p.saved);
    switch (p.excitation) {
      case Excitation::two_fc: {
        const WeightTiles first(R, K, blockDim.x), second(K, R, blockDim.x);
        if (p.grad_fc1_weight || p.grad_fc1_bias) {
          if (job < first.count()) {
            return outer(first, job, static_cast<const A*>(sums.grad_hidden), R, squeezed, call.saved_stride, K,
                         p.grad_fc1_weight, p.grad_fc1_bias);
          }
          job -= first.count();
        }
        return outer(second, job, grad_gate, K, static_cast<const A*>(sums.hidden), R, R, p.grad_fc2_weight, p.grad_fc2_bias);
      }
      case Excitation::one_fc:
        return outer(WeightTiles(K, K, blockDim.x), job, grad_gate, K, squeezed, call.saved_stride, K, p.grad_fc1_weight,
                     p.grad_fc1_bias);
      case Excitation::channel_conv:
        return tap(job);
    }
  }

 private:
  // A tile of weight[m, j] = sum over images of left[n, m] * right[n, j], and bias[m] = sum of left[n, m].
  SENET_DEVICE void outer(const WeightTiles& tiles, int job, const A* left, int M, const A* right, std::int64_t right_stride,
                          int N, void* weight_, void* bias_) const {
    W *weight = static_cast<W*>(weight_), *bias = static_cast<W*>(bias_);
    const int thread = threadIdx.x, row = thread / tiles.across * kWeightRows;
    const int column = job % tiles.column_tiles * tiles.across + thread % tiles.across;
    const int first = job / tiles.column_tiles * tiles.rows + row;
    if (column >= N || row >= tiles.rows) return;
    A sums[kWeightRows] = {}, biases[kWeightRows] = {};
#pragma unroll 4
    for (int n = 0; n < images; ++n) {
      const A factor = right[n * right_stride + column];
#pragma unroll
      for (int i = 0; i < kWeightRows; ++i) {
        const A v = left[std::int64_t{n} * M + (first + i < M ? first + i : 0)];
        sums[i] += v * factor;
        biases[i] += v;
      }
    }
    for (int i = 0; i < kWeightRows && first + i < M; ++i) {
      if (weight) weight[std::int64_t{first + i} * N + column] = narrowed<W>(sums[i]);
      if (bias && column == 0) bias[first + i] = narrowed<W>(biases[i]);
    }
  }

  // The gradient of tap t, or behind the last tap the bias's: a sum over images and channels, which may cancel, by the
  // whole block.
  SENET_DEVICE void tap(int t) const {
    const int K = call.image.K, R = call.image.R, shift = t < R ? t - R / 2 : 0;
    void* to = t < R ? call.p.grad_fc1_weight : call.p.grad_fc1_bias;
    if (to == nullptr) return;
    const int from = shift < 0 ? -shift : 0, end = shift > 0 ? K - shift : K;
    double sum = 0;
    for (int n = 0; n < images; ++n) {
      const A *grads = static_cast<const A*>(sums.grad_gate) + std::int64_t{n} * K,
              *squeezed = static_cast<const A*>(call.p.saved) + n * call.saved_stride + shift;
      for (int k = from + threadIdx.x; k < end; k += blockDim.x) sum += t < R ? double(grads[k]) * squeezed[k] : grads[k];
    }
    sum = sum_lanes(sum, 32);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x != 0) return;
#pragma unroll 1  // its bound would be computed before the loop over tickets, and kept in registers
    for (unsigned w = 1; w * 32 < blockDim.x; ++w) sum += warps[w];
    static_cast<W*>(to)[t < R ? t : 0] = narrowed<W>(A(sum));
  }
};

}  // namespace senet::cuda
