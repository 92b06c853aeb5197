// Whether tensors are what they were: for what is kept of weights between calls.
#include <ATen/core/TensorBody.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace senet::bindings {
namespace {

constexpr std::int64_t kSamples = 8;

std::uint64_t mixed(std::uint64_t hash, std::uint64_t value) {  // splitmix64's finalizer over both
  hash = (hash ^ value) + 0x9e3779b97f4a7c15;
  hash = (hash ^ (hash >> 30)) * 0xbf58476d1ce4e5b9;
  hash = (hash ^ (hash >> 27)) * 0x94d049bb133111eb;
  return hash ^ (hash >> 31);
}

// A number that is another one, but for an unlikely coincidence, when a tensor is another one or was written to. Writes past
// autograd (`.data`) count no version: a few elements, evenly spaced, show those that change the whole.
std::int64_t fingerprint(at::TensorList tensors) {
  std::uint64_t hash = tensors.size();
  for (const at::Tensor& t : tensors) {
    const auto* data = static_cast<const char*>(t.const_data_ptr());
    hash = mixed(hash, reinterpret_cast<std::uintptr_t>(data));
    hash = mixed(hash, static_cast<std::uint64_t>(t.scalar_type()));
    for (const std::int64_t n : t.sizes()) hash = mixed(hash, static_cast<std::uint64_t>(n));
    for (const std::int64_t n : t.strides()) hash = mixed(hash, static_cast<std::uint64_t>(n));
    if (!t.is_inference()) hash = mixed(hash, t._version());
    if (!t.is_cpu() || !t.is_non_overlapping_and_dense()) continue;
    const std::int64_t item = static_cast<std::int64_t>(t.element_size()), last = t.numel() - 1;
    for (std::int64_t i = 0; i < kSamples && last >= 0; ++i) {
      std::uint64_t bits = 0;
      std::memcpy(&bits, data + last * i / (kSamples - 1) * item, std::min<std::size_t>(sizeof bits, t.element_size()));
      hash = mixed(hash, bits);
    }
  }
  return static_cast<std::int64_t>(hash);
}

}  // namespace
}  // namespace senet::bindings

TORCH_LIBRARY_FRAGMENT(senet_fast, m) {
  m.def(torch::schema("fingerprint(Tensor[] tensors) -> int"), {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(senet_fast, CompositeImplicitAutograd, m) { m.impl("fingerprint", &senet::bindings::fingerprint); }
