// What the launchers of forward's and of backward's ticket kernel have in common. launch_of() and is_general() are those for P.
#pragma once
#include "se/cuda/cluster_launch.cuh"
#include "se/cuda/launch.h"
#include "se/cuda/runtime.cuh"

namespace senet::cuda {

// Instances::instance<T, W, kGeneral>() is a kernel's address.
template <class Instances>
struct TicketKernels {
  template <class T, class W>
  static const void* of(bool general) {
    return general ? Instances::template instance<T, W, true>() : Instances::template instance<T, W, false>();
  }
};

template <class Instances, class P>
const void* ticket_kernel(const P& p) {
  return kernel_of<TicketKernels<Instances>>(p, is_general(p));
}

template <class Instances, class P>
const char* plan_here(const P& p, Kernel wanted, Plans& out) {
  Gpu gpu;
  const char* error = gpu_of(ticket_kernel<Instances>(p), gpu);
  if (error) return error;
  out.ticket = plan(p.shape, p.dtype, gpu);
  out.cluster = choose_cluster(p, gpu, wanted, out.ticket);
  return nullptr;
}

template <class P>
std::int64_t scratch_bytes(const P& p, const Plans& plans) {
  if (plans.cluster) return cluster_scratch(p);
  Scratch scratch(nullptr, p.dtype);
  launch_of(p, plans.ticket, nullptr, scratch);
  return scratch.bytes();
}

template <class Instances, class P>
const char* enqueue_call(const P& p, const Plans& plans, void* scratch, unsigned* counters, void* stream) {
  if (plans.cluster) return enqueue_cluster(p, plans.cluster, scratch, stream);
  Scratch taken(scratch, p.dtype);
  return enqueue(ticket_kernel<Instances>(p), launch_of(p, plans.ticket, counters, taken), plans.ticket.blocks, stream);
}

}  // namespace senet::cuda
