// The Python module that carries the op library, and what can be asked of it. No torch here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/cpu.h"
#include "se/cpu/drive.h"
#if defined(SENET_FAST_CUDA)
#include "se/cuda/device.h"
#endif

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
  info["torch"] = SENET_FAST_TORCH;
  info["compiler"] = __VERSION__;
#if defined(_OPENMP)
  info["openmp"] = true;
#else
  info["openmp"] = false;
#endif
#if defined(SENET_FAST_CUDA)
  const senet::cuda::Device device = senet::cuda::device();
  py::dict cuda;
  cuda["nvcc"] = SENET_FAST_CUDA;
  cuda["runtime"] = device.runtime;
  cuda["driver"] = device.driver;
  cuda["devices"] = device.count;
  info["cuda"] = cuda;
#else
  info["cuda"] = py::none();
#endif
  return info;
}

py::dict plan(std::int64_t B, std::int64_t O, std::int64_t K, std::int64_t I, std::int64_t R, std::int64_t item_bytes) {
  const senet::Work work{item_bytes, 2 * K * R * item_bytes};
  const senet::Plan plan = senet::bindings::with_forced(senet::plan({B, O, K, I, R}, work, senet::bindings::machine()));
  py::dict result;
  result["threads"] = plan.threads;
  result["images_per_tile"] = plan.images_per_tile;
  result["rows_per_block"] = plan.rows_per_block;
  result["blocks"] = plan.blocks;
  result["stream"] = plan.stream;
  return result;
}

void force_plan(std::optional<std::int64_t> threads, std::optional<std::int64_t> images_per_tile, std::optional<bool> stream) {
  for (const auto& [name, value] : {std::pair{"threads", threads}, std::pair{"images_per_tile", images_per_tile}}) {
    if (value && *value < 1)
      throw py::value_error(std::string(name) + " is " + std::to_string(*value) + "; expected at least 1");
  }
  senet::bindings::force_plan({threads, images_per_tile, stream});
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The compiled op library of senet_fast; the ops are torch.ops.senet_fast.";
  m.def("build_info", &build_info, "What this library was built with: torch, compiler, openmp, cuda (None, or a dict).");
  m.def("isas", &senet::isas, "The instruction sets built in and supported by this processor, best last.");
  m.def("isa", [] { return senet::kernels().name; }, "The instruction set in use.");
  m.def("select_isa", &senet::select_isa, py::arg("name"),
        "Use the kernels of this instruction set; ValueError if it is not one of isas().");
  m.def("plan", &plan, py::arg("B"), py::arg("O"), py::arg("K"), py::arg("I"), py::arg("R"), py::kw_only(),
        py::arg("item_bytes") = 4,
        "How a two_fc forward on x [B, O, K, I] is cut: threads, images_per_tile, rows_per_block, blocks, stream.");
  m.def("force_plan", &force_plan, py::kw_only(), py::arg("threads") = py::none(), py::arg("images_per_tile") = py::none(),
        py::arg("stream") = py::none(), "Override the planner from now on; what is None it decides itself.");
}
