// The Python module: what can be asked of the op library, to which it is linked. No torch here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "bindings/cpu.h"
#include "se/cuda/cluster_plan.h"
#include "senet_fast_build.h"  // made by setup.py
#if defined(SENET_FAST_CUDA)
#include "se/cuda/device.h"
#endif

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
  info["torch"] = SENET_FAST_TORCH;
  info["compiler"] = __VERSION__;
#if defined(SENET_FAST_OPENMP)
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
  const senet::Machine machine = senet::bindings::machine();
  const senet::Work work{item_bytes, 2 * K * R * item_bytes, machine.stream_forward_bytes};
  const senet::Plan plan = senet::bindings::with_forced(senet::plan({B, O, K, I, R}, work, machine));
  py::dict result;
  result["threads"] = plan.threads;
  result["images_per_tile"] = plan.images_per_tile;
  result["rows_per_block"] = plan.rows_per_block;
  result["blocks"] = plan.blocks;
  result["stream"] = plan.stream;
  result["overlap"] = plan.overlap;
  return result;
}

void check_counts(std::initializer_list<std::pair<const char*, std::optional<std::int64_t>>> counts) {
  for (const auto& [name, value] : counts) {
    if (value && *value < 1)
      throw py::value_error(std::string(name) + " is " + std::to_string(*value) + "; expected at least 1");
  }
}

py::dict plan_conv(std::int64_t B, std::int64_t C_in, std::int64_t pixels, std::int64_t C_out, std::int64_t R,
                   const std::string& side, const std::string& dtype, bool channels_last, bool prepared, bool residual) {
  check_counts({{"B", B}, {"C_in", C_in}, {"pixels", pixels}, {"C_out", C_out}, {"R", R}});
  senet::ConvParams p;
  if (side != "input" && side != "output") throw py::value_error("side is '" + side + "'; expected 'input' or 'output'");
  constexpr std::pair<const char*, senet::Dtype> kTypes[] = {{"float32", senet::Dtype::f32},
                                                             {"float64", senet::Dtype::f64},
                                                             {"bfloat16", senet::Dtype::bf16},
                                                             {"float16", senet::Dtype::f16}};
  const auto* type = std::find_if(std::begin(kTypes), std::end(kTypes), [&](const auto& t) { return dtype == t.first; });
  if (type == std::end(kTypes))
    throw py::value_error("dtype is '" + dtype + "'; expected 'float32', 'float64', 'bfloat16' or 'float16'");
  p.dtype = type->second;
  p.shape = {B, channels_last ? pixels : 1, C_in, channels_last ? 1 : pixels, R};
  p.C_out = C_out;
  p.gates_output = side == "output";
  p.by_pixels = channels_last;
  if (residual) p.epilogue.residual = &p;  // any: only its presence counts
  const senet::bindings::ConvRoute route = senet::bindings::route_conv(p, prepared);
  py::dict result;
  result["fused"] = route.composed_because == nullptr;
  if (route.composed_because) {
    result["because"] = std::vector<std::string>{route.composed_because};
    return result;
  }
  const senet::ConvPlan& plan = route.plan;
  result["because"] = std::vector<std::string>{plan.images_because, plan.across_because, plan.pass_because};
  result["threads"] = plan.threads;
  result["images"] = plan.images_per_tile;
  result["pixels"] = plan.pixels;
  result["tiles"] = plan.tiles;
  result["across"] = plan.across;
  result["channels"] = plan.channels;
  result["tiles_a_pass"] = plan.tiles_a_pass;
  result["stream"] = plan.stream;
  return result;
}

void force_plan_conv(std::optional<bool> fused, std::optional<std::int64_t> threads, std::optional<std::int64_t> images,
                     std::optional<std::int64_t> pixels, std::optional<std::int64_t> across,
                     std::optional<std::int64_t> channels, std::optional<std::int64_t> tiles_a_pass,
                     std::optional<bool> stream) {
  check_counts({{"threads", threads},
                {"images", images},
                {"pixels", pixels},
                {"across", across},
                {"channels", channels},
                {"tiles_a_pass", tiles_a_pass}});
  if (pixels && *pixels > senet::kConvTile)
    throw py::value_error("pixels is " + std::to_string(*pixels) + "; expected at most " + std::to_string(senet::kConvTile));
  if (channels && *channels % senet::kConvTile)
    throw py::value_error("channels is " + std::to_string(*channels) + "; expected a multiple of " +
                          std::to_string(senet::kConvTile));
  senet::bindings::force_plan_conv({fused, stream, threads, images, pixels, across, channels, tiles_a_pass});
}

// Without a kernel's name the environment's, as the op.
py::dict plan_cuda(std::int64_t B, std::int64_t O, std::int64_t K, std::int64_t I, std::optional<std::int64_t> R,
                   int item_bytes, bool backward, bool residual, std::optional<std::string> kernel, int processors,
                   int blocks_per_processor, std::int64_t l2_bytes, std::int64_t shared_bytes) {
  if (item_bytes != 2 && item_bytes != 4 && item_bytes != 8)
    throw py::value_error("item_bytes is " + std::to_string(item_bytes) + "; expected 2, 4 or 8");
  const char* set = std::getenv("SENET_FAST_CUDA_KERNEL");
  if (!kernel) kernel = set ? set : "auto";
  senet::cuda::Kernel wanted;
  if (!senet::cuda::kernel_named(*kernel, wanted))
    throw py::value_error("kernel is '" + *kernel + "'; expected 'auto', 'ticket' or 'cluster'");
  senet::Params p;
  p.shape = {B, O, K, I, R.value_or(std::max<std::int64_t>(1, K / 16))};
  p.dtype = item_bytes == 2 ? senet::Dtype::f16 : item_bytes == 4 ? senet::Dtype::f32 : senet::Dtype::f64;
  p.weight_dtype = p.dtype;
  if (residual) {
    p.epilogue.residual = &p;  // any: only its presence counts
    p.epilogue.activation.kind = senet::ActivationKind::relu;
  }
  const senet::cuda::Gpu gpu{processors, blocks_per_processor, l2_bytes, static_cast<int>(shared_bytes)};
  const senet::cuda::Plan plan = senet::cuda::plan(p, backward, gpu);
  const senet::cuda::Tiles& tiles = plan.tiles;
  const auto size_of = [](const senet::cuda::Tiles& t) { return py::make_tuple(t.channels, t.rows, t.columns); };
  const auto count_of = [](const senet::cuda::Tiles& t) {
    return py::make_tuple(t.channel_tiles, t.row_tiles, t.column_tiles);
  };
  py::dict result;
  result["tile"] = size_of(tiles);
  result["tiles"] = count_of(tiles);
  result["lanes"] = plan.lanes;
  result["images_ahead"] = plan.lag;
  result["blocks"] = plan.blocks;
  const senet::cuda::ClusterPlan cluster =
      senet::cuda::choose(p, backward, gpu, wanted, true, senet::cuda::h100_clusters, plan);
  if (wanted == senet::cuda::Kernel::cluster && !cluster)
    throw py::value_error("kernel is 'cluster', and no cluster can hold an image of this shape and type");
  const senet::cuda::Model model(p, backward, gpu);
  result["kernel"] = cluster ? "cluster" : "ticket";
  result["microseconds"] = cluster ? cluster.microseconds : model.ticket(plan);
  result["microseconds_of_copy"] = model.copy();
  result["microseconds_unfused"] = model.unfused(3);
  if (!cluster) {
    result["cluster"] = py::none();
    return result;
  }
  py::dict shape;
  shape["blocks"] = cluster.size;
  shape["clusters"] = cluster.clusters;
  shape["threads"] = cluster.threads;
  shape["images"] = cluster.images;
  shape["slice"] = size_of(cluster.slices);
  shape["slices"] = count_of(cluster.slices);
  shape["chunks"] = cluster.chunks;
  shape["shared_bytes"] = cluster.shared_bytes;
  result["cluster"] = shape;
  return result;
}

void force_plan(std::optional<std::int64_t> threads, std::optional<std::int64_t> images_per_tile, std::optional<bool> stream,
                std::optional<bool> overlap) {
  check_counts({{"threads", threads}, {"images_per_tile", images_per_tile}});
  senet::bindings::force_plan({threads, images_per_tile, stream, overlap});
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "What can be asked of the op library beside this module, which is loaded with it: libsenet_fast.so.";
  m.def("build_info", &build_info, "What this library was built with: torch, compiler, openmp, cuda (None, or a dict).");
  m.def("isas", &senet::isas, "The instruction sets built in and supported by this processor, best last.");
  m.def("isa", [] { return senet::kernels().name; }, "The instruction set in use.");
  m.def("select_isa", &senet::select_isa, py::arg("name"),
        "Use the kernels of this instruction set; ValueError if it is not one of isas().");
  m.def("plan", &plan, py::arg("B"), py::arg("O"), py::arg("K"), py::arg("I"), py::arg("R"), py::kw_only(),
        py::arg("item_bytes") = 4,
        "How a two_fc forward on x [B, O, K, I] is cut: threads, images_per_tile, rows_per_block, blocks, stream, overlap.");
  m.def(
      "plan_cuda", &plan_cuda, py::arg("B"), py::arg("O"), py::arg("K"), py::arg("I"), py::arg("R") = py::none(), py::kw_only(),
      py::arg("item_bytes") = 4, py::arg("backward") = false, py::arg("residual") = false, py::arg("kernel") = py::none(),
      py::arg("processors") = 132, py::arg("blocks_per_processor") = senet::cuda::kResident, py::arg("l2_bytes") = 50 << 20,
      py::arg("shared_bytes") = 227 << 10,
      "How a two_fc call (R defaults to K / 16; with residual, a ReLU behind it) on x [B, O, K, I] is cut on a GPU, by default "
      "an H100: the ticket kernel's tile and tiles along (K, O, I), lanes to a channel, images_ahead, blocks; kernel, 'ticket' "
      "or 'cluster'; cluster, that kernel's plan or None; microseconds, by a model whose rates were not measured, beside a "
      "kernel that moves the same tensors (microseconds_of_copy) and three that move one more (microseconds_unfused).");
  m.def("force_plan", &force_plan, py::kw_only(), py::arg("threads") = py::none(), py::arg("images_per_tile") = py::none(),
        py::arg("stream") = py::none(), py::arg("overlap") = py::none(),
        "Override the planner from now on; what is None it decides itself.");
  m.def(
      "plan_conv", &plan_conv, py::arg("B"), py::arg("C_in"), py::arg("pixels"), py::arg("C_out"), py::arg("R"), py::kw_only(),
      py::arg("side") = "input", py::arg("dtype") = "float32", py::arg("channels_last") = true, py::arg("prepared") = true,
      py::arg("residual") = false,
      "How a two_fc squeeze_excite_conv of B maps is cut: fused or not, because of what; images squeezed together, pixels of a "
      "tile, tiles of an image, parts of the output channels (across), channels of a block, tiles over which weights stay in "
      "the cache; whether y "
      "goes past the caches (stream).");
  m.def("force_plan_conv", &force_plan_conv, py::kw_only(), py::arg("fused") = py::none(), py::arg("threads") = py::none(),
        py::arg("images") = py::none(), py::arg("pixels") = py::none(), py::arg("across") = py::none(),
        py::arg("channels") = py::none(), py::arg("tiles_a_pass") = py::none(), py::arg("stream") = py::none(),
        "Override the planner of squeeze_excite_conv from now on; what is None it decides itself.");
}
