// Forward and backward on a GPU: all that the binding sees. No CUDA header here.
#pragma once
#include "se/cuda/cluster_plan.h"

namespace senet::cuda {

// How a call runs: by the cluster kernels if their plan has a size, else by the ticket kernel.
struct Plans {
  Plan ticket;
  ClusterPlan cluster;
  std::int64_t scratch_bytes = 0;  // to be aligned to 16
  // Of ticket kernels only: zero before and after each launch; launches that may run at the same time need their own.
  std::int64_t counters = 0;
};

// All three are about the current device. What they cannot do they say: null, or the CUDA runtime's words.
const char* make_plans(const ForwardParams& p, Kernel wanted, Plans& plans);
const char* make_plans(const BackwardParams& p, Kernel wanted, Plans& plans);

// Enqueues the work on a cudaStream_t.
const char* launch(const ForwardParams& p, const Plans& plans, void* scratch, unsigned* counters, void* stream);
const char* launch(const BackwardParams& p, const Plans& plans, void* scratch, unsigned* counters, void* stream);

// Whether the stream is being recorded into a CUDA graph.
bool is_capturing(void* stream);

}  // namespace senet::cuda
