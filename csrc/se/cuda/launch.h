// Forward and backward on a GPU: all that the binding sees. No CUDA header here.
#pragma once
#include "se/cuda/cluster_plan.h"

namespace senet::cuda {

// How a call runs: by the cluster kernels if their plan has a size, else by the ticket kernel.
struct Plans {
  Plan ticket;
  ClusterPlan cluster;
  std::int64_t scratch_bytes = 0;  // to be aligned to 16
};

// Both are about the current device. What they cannot do they say: null, or the CUDA runtime's words.
const char* make_plans(const ForwardParams& p, Kernel wanted, Plans& plans);
const char* make_plans(const BackwardParams& p, Kernel wanted, Plans& plans);

// Enqueues the work on a cudaStream_t, which may be recorded into a graph.
const char* launch(const ForwardParams& p, const Plans& plans, void* scratch, void* stream);
const char* launch(const BackwardParams& p, const Plans& plans, void* scratch, void* stream);

}  // namespace senet::cuda
