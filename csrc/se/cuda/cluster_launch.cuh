// The cluster kernels as the ticket kernels' launchers see them.
#pragma once
#include "se/cuda/cluster_plan.h"

namespace senet::cuda {

// On the current device; no size where the ticket kernel is to run, or where clusters cannot.
ClusterPlan choose_cluster(const ForwardParams& p, const Gpu& gpu, Kernel wanted, const Plan& ticket);
ClusterPlan choose_cluster(const BackwardParams& p, const Gpu& gpu, Kernel wanted, const Plan& ticket);

std::int64_t cluster_scratch(const ForwardParams& p);
std::int64_t cluster_scratch(const BackwardParams& p);
const char* enqueue_cluster(const ForwardParams& p, const ClusterPlan& plan, void* scratch, void* stream);
const char* enqueue_cluster(const BackwardParams& p, const ClusterPlan& plan, void* scratch, void* stream);

}  // namespace senet::cuda
