// The ops on a GPU. No CUDA header: device and stream come from c10, and the kernels are behind se/cuda/launch.h.
#include "senet_fast_build.h"  // made by setup.py
#if defined(SENET_FAST_CUDA)
#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/library.h>

#include <cstdlib>

#include "bindings/ops.h"
#include "bindings/run.h"
#include "se/cuda/launch.h"

namespace senet::bindings {
namespace {

void check_cuda(const char* error, const char* what) {
  TORCH_CHECK(error == nullptr, "squeeze_excite: ", what, " failed: ", error);
}

// SENET_FAST_CUDA_KERNEL: auto, ticket or cluster. Read at every call, so that one process can compare them.
cuda::Kernel wanted_kernel() {
  const char* name = std::getenv("SENET_FAST_CUDA_KERNEL");
  cuda::Kernel kernel = cuda::Kernel::automatic;
  TORCH_CHECK_VALUE(!name || cuda::kernel_named(name, kernel), "SENET_FAST_CUDA_KERNEL is '", name,
                    "'; expected 'auto', 'ticket' or 'cluster'");
  return kernel;
}

// Enqueues forward or backward on the current stream of the device of x.
class RunOnGpu {
 public:
  explicit RunOnGpu(const Tensor& x) : x_(x), guard_(x.device()) {}

  template <class P>
  void operator()(const P& p) const {
    for (const std::int64_t size : {p.shape.B, p.shape.O, p.shape.K, p.shape.I, p.shape.R}) {
      TORCH_CHECK_VALUE(size < std::int64_t{1} << 30, "squeeze_excite: x has shape ", x_.sizes(),
                        "; expected fewer than 2^30 images, rows, channels and columns on a GPU");
    }
    const cuda::Kernel wanted = wanted_kernel();
    cuda::Plans plans;
    check_cuda(cuda::make_plans(p, wanted, plans), "asking for the GPU's properties");
    TORCH_CHECK_VALUE(plans.cluster || wanted != cuda::Kernel::cluster || x_.numel() == 0,
                      "squeeze_excite: SENET_FAST_CUDA_KERNEL is 'cluster', and x has shape ", x_.sizes(), " and type ",
                      x_.scalar_type(),
                      "; expected a GPU with clusters (sm_90 or later), a build for it, a type other than "
                      "float64 and an image that fits the shared memory of a cluster");
    TORCH_CHECK_VALUE(plans.cluster || cuda::fits_one_launch(plans.ticket, p.shape.B), "squeeze_excite: x has shape ",
                      x_.sizes(), "; expected fewer than 2^30 tiles of 8 to 32 kB on a GPU");
    void* stream = c10::impl::VirtualGuardImpl(x_.device().type()).getStream(x_.device()).native_handle();
    const Tensor scratch = at::empty({plans.scratch_bytes}, x_.options().dtype(at::kByte));
    check_cuda(cuda::launch(p, plans, scratch.mutable_data_ptr(), stream), "the launch");
  }
  static void made(const Tensor&) {}

 private:
  const Tensor& x_;
  const c10::DeviceGuard guard_;
};

Tensor op_cuda(SENET_ARGUMENTS) {
  const Arguments a{SENET_PASS};
  check(a);
  return forward_new(a, {}, nullptr, RunOnGpu(x));
}

Tensor prologue_cuda(SENET_PROLOGUE_ARGUMENTS) {
  const Arguments a{SENET_PASS};
  check_prologue(a, pre_scale, pre_shift, pre_activation);
  const PrologueTensors pre(x, pre_scale, pre_shift, pre_activation);
  return forward_new(a, pre.prologue, nullptr, RunOnGpu(x));
}

void into_cuda(SENET_INTO_ARGUMENTS) {
  const Arguments a{SENET_PASS};
  check_prologue(a, pre_scale, pre_shift, pre_activation);
  check_out(a, out);
  const PrologueTensors pre(x, pre_scale, pre_shift, pre_activation);
  forward_given(a, pre.prologue, out, RunOnGpu(x));
}

std::tuple<Tensor, Tensor> forward_cuda(SENET_ARGUMENTS) {
  const Arguments a{SENET_PASS};
  check(a);
  Tensor saved = at::empty({x.size(0), saved_width(a).expect_int()}, x.options().dtype(accumulate_type(x)));
  return {forward_new(a, {}, saved.mutable_data_ptr(), RunOnGpu(x)), saved};
}

Gradients backward_cuda(const Tensor& grad_y, const Tensor& saved, Mask mask, SENET_ARGUMENTS, const OptionalTensor& y) {
  return gradients(grad_y, saved, mask, {SENET_PASS}, y, RunOnGpu(x));
}

}  // namespace
}  // namespace senet::bindings

TORCH_LIBRARY_IMPL(senet_fast, CUDA, m) {
  m.impl("squeeze_excite", &senet::bindings::op_cuda);
  m.impl("squeeze_excite_prologue", &senet::bindings::prologue_cuda);
  m.impl("squeeze_excite_into", &senet::bindings::into_cuda);
  m.impl("squeeze_excite_forward", &senet::bindings::forward_cuda);
  m.impl("squeeze_excite_backward", &senet::bindings::backward_cuda);
}
#endif
