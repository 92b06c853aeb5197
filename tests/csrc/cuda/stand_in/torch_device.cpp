// The device type CUDA of a torch without CUDA: allocator, guard and hooks, whose places are empty there.
#include "torch_device.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace stand_in {
namespace {

struct Allocator final : c10::Allocator {
  static void free(void* p) { release(p); }
  c10::DataPtr allocate(std::size_t bytes) override {
    void* p = stand_in::allocate(current_device(), bytes);
    return {p, p, &free, device_at(current_device())};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &free; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    const Open first(0), second(1);
    default_copy_data(to, from, bytes);
  }
};
Allocator the_allocator;
}  // namespace

c10::Allocator& allocator() { return the_allocator; }

namespace {

int index_of(c10::Device device) { return device.index() < 0 ? current_device() : device.index(); }
// id 0 is a device's default stream, as in torch's CUDA.
c10::Stream wrapped(Stream* stream) {
  const bool plain = stream == &default_stream(stream->device);
  return c10::Stream(c10::Stream::UNSAFE, device_at(stream->device), plain ? 0 : reinterpret_cast<std::int64_t>(stream));
}
Stream& unwrapped(const c10::Stream& stream) {
  return stream.id() == 0 ? default_stream(index_of(stream.device())) : *reinterpret_cast<Stream*>(stream.id());
}

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kCuda; }
  c10::DeviceIndex deviceCount() const noexcept override { return kDevices; }
  c10::Device getDevice() const override { return device_at(current_device()); }
  void setDevice(c10::Device device) const override {
    TORCH_CHECK(device.index() >= 0 && device.index() < kDevices, "invalid device ordinal");
    current_device() = device.index();
  }
  void uncheckedSetDevice(c10::Device device) const noexcept override { current_device() = device.index(); }
  c10::Device exchangeDevice(c10::Device device) const override {
    const c10::Device before = getDevice();
    setDevice(device);
    return before;
  }

  c10::Stream getStream(c10::Device device) const override { return wrapped(current_stream(index_of(device))); }
  c10::Stream getDefaultStream(c10::Device device) const override { return wrapped(&default_stream(index_of(device))); }
  c10::Stream getNewStream(c10::Device device, int) const override { return wrapped(new_stream(index_of(device))); }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool) const override { return getNewStream(device, 0); }
  c10::Stream exchangeStream(c10::Stream stream) const override {
    Stream*& current = current_stream(index_of(stream.device()));
    const c10::Stream before = wrapped(current);
    current = &unwrapped(stream);
    return before;
  }
  void* getStreamNativeHandle(const c10::Stream stream) const override {
    return stream.id() == 0 ? nullptr : &unwrapped(stream);
  }
  bool queryStream(const c10::Stream& stream) const override { return unwrapped(stream).work.empty(); }
  void synchronizeStream(const c10::Stream& stream) const override { drain(unwrapped(stream)); }
  void synchronizeDevice(c10::DeviceIndex device) const override { synchronize(device < 0 ? current_device() : device); }
  bool isStreamCapturing(const c10::Stream& stream) const override { return unwrapped(stream).capture != nullptr; }
  void recordDataPtrOnStream(const c10::DataPtr& p, const c10::Stream& stream) const override {
    if (p.get()) also_used_on(p.get(), unwrapped(stream));
  }

  void record(void** event, const c10::Stream& stream, c10::DeviceIndex, c10::EventFlag) const override {
    if (!*event) *event = new Event;
    stand_in::record(*static_cast<Event*>(*event), unwrapped(stream));
  }
  void block(void* event, const c10::Stream& stream) const override {
    if (event) wait(unwrapped(stream), *static_cast<Event*>(event));
  }
  bool queryEvent(void* event) const override {
    const auto* e = static_cast<Event*>(event);
    return !e || !e->stream || e->stream->done >= e->at;
  }
  void synchronizeEvent(void* event) const override {
    if (const auto* e = static_cast<Event*>(event); e && e->stream) drain(*e->stream, e->at);
  }
  void destroyEvent(void* event, c10::DeviceIndex) const noexcept override { delete static_cast<Event*>(event); }
};

}  // namespace
}  // namespace stand_in

namespace {
using stand_in::Guard;
using stand_in::the_allocator;
REGISTER_ALLOCATOR(stand_in::kCuda, &the_allocator)
C10_REGISTER_GUARD_IMPL(CUDA, Guard)
}  // namespace

namespace at {

// torch asks its registry for a class of this name.
struct CUDAHooks final : CUDAHooksInterface {
  explicit CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  int getNumGPUs() const override { return stand_in::kDevices; }
  DeviceIndex deviceCount() const override { return stand_in::kDevices; }
  DeviceIndex current_device() const override { return static_cast<DeviceIndex>(stand_in::current_device()); }
  DeviceIndex getCurrentDevice() const override { return current_device(); }
  void setCurrentDevice(DeviceIndex device) const override { stand_in::current_device() = device; }
  DeviceIndex exchangeDevice(DeviceIndex device) const override {
    const DeviceIndex before = current_device();
    setCurrentDevice(device);
    return before;
  }
  DeviceIndex maybeExchangeDevice(DeviceIndex device) const override { return exchangeDevice(device); }
  void deviceSynchronize(DeviceIndex device) const override { stand_in::synchronize(device); }
  const Generator& getDefaultGenerator(DeviceIndex) const override { return detail::getDefaultCPUGenerator(); }
};
REGISTER_CUDA_HOOKS(CUDAHooks)

}  // namespace at
