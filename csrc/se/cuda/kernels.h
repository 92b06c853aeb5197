// The kernels by their addresses, for the types and options of a call. Each .cu file but launch.cu has those of one kernel.
#pragma once
#include "se/params.h"

namespace senet::cuda {

const void* ticket_kernel(const ForwardParams& p);
const void* ticket_kernel(const BackwardParams& p);
// For so many images of a cluster at the same time; null for float64, which has none.
const void* cluster_kernel(const ForwardParams& p, int images);
const void* cluster_kernel(const BackwardParams& p, int images);
// What follows the cluster kernel's backward: the gradients of the weights.
const void* weight_gradients_kernel(const BackwardParams& p);

}  // namespace senet::cuda
