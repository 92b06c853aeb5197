// ATen's operators on the stand-in: those of the CPU over the same memory, at once, after the work of the current stream.
// Operators that are not ATen's are refused, so that one that is missing for CUDA is missing here. And the Python module.
#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/library.h>

#include <optional>

#include "torch_device.h"

namespace stand_in {
namespace {

using at::Tensor;
using c10::Device;
constexpr c10::DispatchKeySet kKeys(c10::DispatchKey::CUDA);

Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> type, std::optional<at::Layout>, std::optional<Device> device,
             std::optional<bool>, std::optional<at::MemoryFormat> format) {
  const c10::DeviceGuard guard(device.value_or(Device(kCuda)));
  return Tensor(at::detail::empty_generic(size, &allocator(), kKeys, c10::dtype_or_default(type), format));
}
Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> type,
                     std::optional<at::Layout>, std::optional<Device> device, std::optional<bool>) {
  const c10::DeviceGuard guard(device.value_or(Device(kCuda)));
  return Tensor(at::detail::empty_strided_generic(size, stride, &allocator(), kKeys, c10::dtype_or_default(type)));
}

Tensor on_cpu(const Tensor& t) {
  if (!t.defined() || !t.is_cuda()) return t;
  return at::from_blob(const_cast<void*>(t.const_data_ptr()), t.sizes(), t.strides(), t.options().device(at::kCPU));
}

// A device's memory, in the order of its current stream.
class Turn {
 public:
  explicit Turn(int device) : open_(ready(device)) {}

 private:
  static int ready(int device) {
    Stream& stream = *current_stream(device);
    TORCH_CHECK(!stream.capture, "stand-in: only launches and fills can be recorded into a graph");
    drain(stream);
    return device;
  }
  Open open_;
};

Tensor& copy(Tensor& self, const Tensor& from, bool) {
  std::optional<Turn> to_turn, from_turn;
  if (self.is_cuda()) to_turn.emplace(self.get_device());
  if (from.is_cuda()) from_turn.emplace(from.get_device());
  on_cpu(self).copy_(on_cpu(from));
  return self;
}
at::Scalar item(const Tensor& self) {
  const Turn turn(self.get_device());
  return on_cpu(self).item();
}
// As CUDA does it: a memset, which a graph records.
Tensor& zero(Tensor& self) {
  TORCH_CHECK(self.is_non_overlapping_and_dense(), "stand-in: zero_ of what is not dense");
  const int device = self.get_device();
  const auto work = [p = self.mutable_data_ptr(), bytes = self.nbytes(), device] {
    const Open open(device);
    std::memset(p, 0, bytes);
  };
  Stream& stream = *current_stream(device);
  if (stream.capture) {
    stream.capture->nodes.push_back({"memset", [work](Stream& on) { enqueue(on, work); }});
  } else {
    enqueue(stream, work);
  }
  return self;
}
const Tensor& resize(const Tensor& self, at::IntArrayRef size, std::optional<at::MemoryFormat>) {
  const Turn turn(self.get_device());
  at::native::resize_impl_cpu_(self.unsafeGetTensorImpl(), size, std::nullopt, true);
  return self;
}

// Replaces the tensors of a value by what map says.
template <class Map>
void for_tensors(c10::IValue& value, const Map& map) {
  if (value.isTensor()) {
    value = map(value.toTensor());
  } else if (value.isTensorList()) {
    std::vector<Tensor> mapped;
    for (const Tensor& t : value.toTensorVector()) mapped.push_back(map(t));
    value = c10::IValue(mapped);
  } else if (value.isOptionalTensorList()) {
    c10::List<std::optional<Tensor>> mapped;
    for (const std::optional<Tensor> t : value.toOptionalTensorList()) mapped.push_back(t ? std::optional(map(*t)) : t);
    value = c10::IValue(mapped);
  }
}

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  TORCH_CHECK_NOT_IMPLEMENTED(op.operator_name().name.rfind("aten::", 0) == 0, "stand-in: ", op.operator_name(),
                              " has no CUDA kernel");
  std::vector<Tensor> given, views;
  int device = current_device();
  const auto to_cpu = [&](const Tensor& t) -> Tensor {
    if (!t.defined() || !t.is_cuda()) return t;
    device = t.get_device();
    given.push_back(t);
    // without elements it may be an output that is resized
    views.push_back(t.numel() == 0 ? at::empty(t.sizes(), t.options().device(at::kCPU)) : on_cpu(t));
    return views.back();
  };
  for (auto value = stack->end() - static_cast<std::ptrdiff_t>(schema.arguments().size()); value != stack->end(); ++value) {
    if (value->isDevice()) *value = c10::IValue(Device(at::kCPU));
    for_tensors(*value, to_cpu);
  }
  {
    const Turn turn(device);
    std::optional<Turn> first;  // what was moved between devices may come from there
    if (device != 0) first.emplace(0);
    op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  }
  const auto to_device = [&](const Tensor& t) -> Tensor {
    if (!t.defined()) return t;
    for (std::size_t i = 0; i < views.size(); ++i) {
      if (!views[i].is_same(t)) continue;
      if (given[i].sizes() != t.sizes()) {
        TORCH_CHECK(given[i].numel() == 0, "stand-in: ", op.operator_name(), " has resized a tensor with elements");
        given[i].resize_(t.sizes());
        copy(given[i], t, false);
      }
      return given[i];
    }
    Tensor made = empty_strided(t.sizes(), t.strides(), t.scalar_type(), {}, device_at(device), {});
    return copy(made, t, false);
  };
  for (auto value = stack->end() - static_cast<std::ptrdiff_t>(schema.returns().size()); value != stack->end(); ++value) {
    for_tensors(*value, to_device);
  }
}

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }
TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("copy_", &copy);
  m.impl("zero_", &zero);
  m.impl("_local_scalar_dense", &item);
  m.impl("resize_", &resize);
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("view", &at::native::view);
  m.impl("_reshape_alias", &at::native::_reshape_alias);
  m.impl("unfold", &at::native::unfold);
}

}  // namespace
}  // namespace stand_in

PYBIND11_MODULE(_stand_in, m) {
  namespace py = pybind11;
  using namespace stand_in;
  m.attr("devices") = kDevices;
  m.def("current_device", [] { return current_device(); });
  m.def("set_device", [](int device) { current_device() = device; });
  m.def("synchronize", &synchronize);
  m.def("take_faults", &take_faults);
  m.def("errors_left", &errors_left);
  m.def("begin_pool", [] { return begin_pool(*current_stream(current_device())); });
  m.def("end_pool", [] { end_pool(*current_stream(current_device())); });
  m.def("drop_pool", &drop_pool);
  m.def("live", &live);

  py::class_<Settings>(m, "Settings")
      .def("reset",
           [](Settings& all) {
             const Settings counted = all;
             all = Settings();
             all.launches = counted.launches, all.clusters = counted.clusters;
             all.probes = counted.probes, all.mallocs = counted.mallocs;
           })
      .def_readwrite("resident", &Settings::resident)
      .def_readwrite("fail_after", &Settings::fail_after)
      .def_readwrite("failure", &Settings::failure)
      .def_readwrite("half_done", &Settings::half_done)
      .def_readwrite("garbage", &Settings::garbage)
      .def_readonly("launches", &Settings::launches)
      .def_readonly("clusters", &Settings::clusters)
      .def_readonly("probes", &Settings::probes)
      .def_readonly("mallocs", &Settings::mallocs);
  m.def("settings", &settings, py::return_value_policy::reference);

  py::class_<Graph, std::unique_ptr<Graph, py::nodelete>>(m, "Graph")
      .def_property_readonly("kinds",
                             [](const Graph& graph) {
                               std::vector<std::string> kinds;
                               for (const Node& node : graph.nodes) kinds.push_back(node.kind);
                               return kinds;
                             })
      .def_readonly("pool", &Graph::pool)
      .def("replay", [](Graph& graph) { replay(graph, *current_stream(current_device())); })
      .def("destroy", [](Graph& graph) { destroy(&graph); });
  m.def("begin_capture", [] { return begin_capture(*current_stream(current_device())); }, py::return_value_policy::reference);
  m.def("end_capture", [] { end_capture(*current_stream(current_device())); });
}
