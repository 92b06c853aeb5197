// Tensors that no kernel of ours takes and that torch keeps apart by dispatch key: one sentence for all of them.
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <string>

namespace senet::bindings {
namespace {

std::string kind_of(const at::Tensor& t) {
  if (t.is_nested()) return "a nested tensor";
  if (t.is_quantized()) return std::string("quantized, ") + c10::toString(t.scalar_type());
  std::ostringstream layout;
  layout << t.layout();
  return "of layout " + layout.str();
}

void refuse(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& arguments = op.schema().arguments();
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const c10::IValue& value = torch::jit::peek(*stack, i, arguments.size());
    if (!value.isTensor() || !value.toTensor().defined()) continue;
    const at::Tensor& t = value.toTensor();
    TORCH_CHECK_TYPE(!t.is_nested() && !t.is_quantized() && t.layout() == at::kStrided, "squeeze_excite: ", arguments[i].name(),
                     " is ", kind_of(t), "; expected a dense tensor of Float, Double, BFloat16 or Half");
  }
  TORCH_CHECK_TYPE(false, "squeeze_excite: expected dense tensors");
}

void refuse_all(torch::Library& m) {
  for (const char* name : {"squeeze_excite", "squeeze_excite_prologue", "squeeze_excite_into", "squeeze_excite_forward",
                           "squeeze_excite_backward", "squeeze_excite_conv", "squeeze_excite_conv_into"})
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&refuse>());
}

}  // namespace
}  // namespace senet::bindings

TORCH_LIBRARY_IMPL(senet_fast, SparseCPU, m) { senet::bindings::refuse_all(m); }
TORCH_LIBRARY_IMPL(senet_fast, SparseCUDA, m) { senet::bindings::refuse_all(m); }
TORCH_LIBRARY_IMPL(senet_fast, SparseCsrCPU, m) { senet::bindings::refuse_all(m); }
TORCH_LIBRARY_IMPL(senet_fast, SparseCsrCUDA, m) { senet::bindings::refuse_all(m); }
TORCH_LIBRARY_IMPL(senet_fast, MkldnnCPU, m) { senet::bindings::refuse_all(m); }
TORCH_LIBRARY_IMPL(senet_fast, QuantizedCPU, m) { senet::bindings::refuse_all(m); }
TORCH_LIBRARY_IMPL(senet_fast, QuantizedCUDA, m) { senet::bindings::refuse_all(m); }
TORCH_LIBRARY_IMPL(senet_fast, NestedTensorCPU, m) { senet::bindings::refuse_all(m); }
TORCH_LIBRARY_IMPL(senet_fast, NestedTensorCUDA, m) { senet::bindings::refuse_all(m); }
TORCH_LIBRARY_IMPL(senet_fast, AutogradNestedTensor, m) { senet::bindings::refuse_all(m); }
