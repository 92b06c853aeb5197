// The ticket kernels' counters: zero before a launch and after it, so that a launch needs no memset before it.
//
// They are memory of the CUDA runtime's own, not of torch's allocator: what torch allocates while it warms up or records a
// graph belongs to the graph, and nothing of it may live on. A stream has its own, since its launches follow each other, and so
// has each stream of a graph's recording: the graph may be replayed on any stream beside whatever else runs. Those of a graph
// come back when it is destroyed. All are released when the process ends.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

namespace senet::cuda {

// `count` of them for a launch on a stream of the current device. The graph that the stream is recorded into gets no node more.
cudaError_t counters_for(cudaStream_t stream, std::int64_t count, unsigned*& counters);

// A launch on the stream has failed: who knows what it left in them. The next one begins with zeros again.
void distrust_counters(cudaStream_t stream);

}  // namespace senet::cuda
