// Forward and backward on a GPU: all that the binding sees. No CUDA header here.
#pragma once
#include "se/cuda/cluster_plan.h"

namespace senet::cuda {

struct Plans {
  Plan ticket;
  ClusterPlan cluster;  // runs if it has a size
};

// Of the current device. What a function cannot do it says: null, or the CUDA runtime's words.
const char* plan_forward(const ForwardParams& p, Kernel wanted, Plans& plans);
const char* plan_backward(const BackwardParams& p, Kernel wanted, Plans& plans);

// Bytes of scratch, aligned to 16.
std::int64_t forward_scratch(const ForwardParams& p, const Plans& plans);
std::int64_t backward_scratch(const BackwardParams& p, const Plans& plans);

// Enqueues the work on a cudaStream_t of the current device. counters, of ticket kernels only: counters_of(B) of them, zero
// before and after each launch; launches that may run at the same time need their own.
const char* forward(const ForwardParams& p, const Plans& plans, void* scratch, unsigned* counters, void* stream);
const char* backward(const BackwardParams& p, const Plans& plans, void* scratch, unsigned* counters, void* stream);

// Whether the stream is being recorded into a CUDA graph.
bool is_capturing(void* stream);

}  // namespace senet::cuda
