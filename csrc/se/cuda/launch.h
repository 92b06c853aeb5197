// Forward and backward on a GPU: all that the binding sees. No CUDA header here.
#pragma once
#include "se/cuda/plan.h"

namespace senet::cuda {

// Of the current device. What a function cannot do it says: null, or the CUDA runtime's words.
const char* plan_forward(const ForwardParams& p, Plan& plan);
const char* plan_backward(const BackwardParams& p, Plan& plan);

// Bytes of scratch, aligned to 16.
std::int64_t forward_scratch(const ForwardParams& p, const Plan& plan);
std::int64_t backward_scratch(const BackwardParams& p, const Plan& plan);

// Enqueues the work on a cudaStream_t of the current device. counters: counters_of(B) of them, zero before and after each
// launch; launches that may run at the same time need their own.
const char* forward(const ForwardParams& p, const Plan& plan, void* scratch, unsigned* counters, void* stream);
const char* backward(const BackwardParams& p, const Plan& plan, void* scratch, unsigned* counters, void* stream);

// Whether the stream is being recorded into a CUDA graph.
bool is_capturing(void* stream);

}  // namespace senet::cuda
