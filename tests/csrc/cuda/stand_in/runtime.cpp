// The CUDA runtime's functions over the stand-in's devices and the emulator.
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <memory>
#include <unordered_map>
#include <utility>

#include "cuda_runtime.h"
#include "device.h"
#include "emulator.h"

namespace emulator {
namespace {
std::unordered_map<const void*, Kernel>& kernels() {
  static auto& all = *new std::unordered_map<const void*, Kernel>;
  return all;
}
}  // namespace

void know(const void* address, const Kernel& kernel) {
  const std::lock_guard guard(stand_in::lock());
  kernels().try_emplace(address, kernel);
}
const Kernel* kernel_at(const void* address) {
  const std::lock_guard guard(stand_in::lock());
  const auto found = kernels().find(address);
  return found == kernels().end() ? nullptr : &found->second;
}
}  // namespace emulator

namespace stand_in {
void invalidate_recordings();
bool is_recording();

namespace {

constexpr int kProcessors = 4, kBlocks = 2, kShared = 227 << 10, kStaticShared = 48 << 10;
thread_local cudaError_t last_error = cudaSuccess;
std::atomic<int> left = 0;
thread_local cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;

cudaError_t take_error() {
  if (last_error != cudaSuccess) --left;
  return std::exchange(last_error, cudaSuccess);
}
cudaError_t answer(cudaError_t error) {
  if (error == cudaSuccess) return error;
  take_error();
  ++left;
  return last_error = error;
}
// Begins every call: the error it is to fail with, if any. A context does not survive a fork.
cudaError_t begin() {
  static const pid_t pid = getpid();
  if (getpid() != pid) {
    std::fprintf(stderr, "stand-in: the CUDA runtime is called in a forked process\n");
    std::fflush(stderr);
    _exit(86);
  }
  Settings& s = settings();
  if (s.fail_after < 0 || s.fail_after-- > 0) return cudaSuccess;
  return answer(static_cast<cudaError_t>(s.failure));
}
// What may not be called while somebody's stream is recorded, but by a thread that says it knows.
cudaError_t begin_unsafe() {
  if (const cudaError_t error = begin()) return error;
  if (!is_recording() || mode == cudaStreamCaptureModeRelaxed) return cudaSuccess;
  invalidate_recordings();
  return answer(cudaErrorStreamCaptureUnsupported);
}

struct Allowed {  // to a kernel
  int shared_bytes = kStaticShared;
  bool wide = false;
};
Allowed& allowed(const void* kernel) {
  static auto& all = *new std::unordered_map<const void*, Allowed>;
  return all[kernel];
}

struct Work {
  const emulator::Kernel* kernel;
  unsigned blocks, threads, cluster;  // cluster 0: none
  std::size_t shared_bytes;
  std::shared_ptr<std::vector<std::max_align_t>> launch;  // a copy, as a launch makes one

  // calls see(block, begins at) for all that is memory of a device
  template <class See>
  void for_memory(const See& see) const {
    const auto* bytes = reinterpret_cast<const char*>(launch->data());
    for (std::size_t at = 0; at + sizeof(void*) <= kernel->launch_bytes; at += sizeof(void*)) {
      void* p;
      std::memcpy(&p, bytes + at, sizeof p);
      int device = 0;
      char* begin = nullptr;
      if (Block* block = block_of(p, device, &begin)) see(*block, begin);
    }
  }

  // In a stream's order, of a graph or not.
  void enqueue_on(Stream& stream, std::int64_t pool) const {
    ++settings().launches;
    settings().clusters += cluster > 0;
    for_memory([&](Block& block, const char*) {
      if (block.state == State::free) return fault("a launch is given memory that is free");
      if (block.state == State::kept && block.pool != pool) return fault("a launch is given a graph's memory that is free");
      if (block.device != stream.device) return fault("a launch is given memory of another device");
      if (!ordered(stream, block.user, block.used)) {
        return fault(block.owner ? "a launch is given memory of a stream that it does not wait for"
                                 : "two launches share counters, and nothing orders them");
      }
      if (block.owner && block.owner != &stream) return;
      block.user = &stream;
      block.used = stream.queued + 1;
    });
    static unsigned seed = 0;
    const emulator::Options options{++seed, settings().resident, std::max(1u, cluster)};
    enqueue(stream, [work = *this, options, device = stream.device] {
      const Open open(device);
      emulator::launch(work.blocks, work.threads, work.shared_bytes, options,
                       [&](void*) { work.kernel->run(work.launch->data()); });
    });
  }
};

}  // namespace

int errors_left() { return left; }

}  // namespace stand_in

using namespace stand_in;

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidResourceHandle:
      return "invalid resource handle";
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
    default:
      return "unspecified launch failure";
  }
}
cudaError_t cudaGetLastError() { return take_error(); }

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return begin();
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return begin();
}
cudaError_t cudaGetDeviceCount(int* count) {
  *count = kDevices;
  return begin();
}
cudaError_t cudaGetDevice(int* device) {
  *device = current_device();
  return begin();
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (const cudaError_t error = begin()) return error;
  if (device < 0 || device >= kDevices) return answer(cudaErrorInvalidDevice);
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = kProcessors;
      break;
    case cudaDevAttrL2CacheSize:
      *value = 50 << 20;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = kShared;
      break;
    case cudaDevAttrClusterLaunch:
      *value = 1;
      break;
  }
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** p, std::size_t bytes) {
  if (const cudaError_t error = begin_unsafe()) return error;
  const std::lock_guard guard(lock());
  ++settings().mallocs;
  *p = allocate_raw(current_device(), bytes);
  return cudaSuccess;
}
cudaError_t cudaFree(void* p) {
  if (const cudaError_t error = begin_unsafe()) return error;
  const std::lock_guard guard(lock());
  for (int d = 0; d < kDevices; ++d) synchronize(d);
  return release_raw(p) ? cudaSuccess : answer(cudaErrorInvalidValue);
}
cudaError_t cudaMemsetAsync(void* p, int value, std::size_t bytes, cudaStream_t native) {
  if (const cudaError_t error = begin()) return error;
  const std::lock_guard guard(lock());
  const auto enqueue_on = [p, value, bytes](Stream& stream) {
    int device = 0;
    Block* block = block_of(p, device);
    if (!block || block->state == State::free) return fault("a memset of memory that is free");
    if (!ordered(stream, block->user, block->used)) return fault("a memset of memory that another stream uses");
    block->user = &stream;
    block->used = stream.queued + 1;
    enqueue(stream, [p, value, garbage = settings().garbage, bytes, device] {
      const Open open(device);
      std::memset(p, value, bytes);
      if (garbage) std::fill_n(static_cast<unsigned*>(p), bytes / sizeof(unsigned), garbage);
    });
  };
  Stream& stream = resolve(native);
  if (stream.capture) {
    stream.capture->nodes.push_back({"memset", enqueue_on});
  } else {
    enqueue_on(stream);
  }
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  if (const cudaError_t error = begin()) return error;
  if (flags != cudaStreamNonBlocking) return answer(cudaErrorInvalidValue);  // no other is modelled
  *stream = new_stream(current_device());
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t native) {
  if (const cudaError_t error = begin_unsafe()) return error;
  if (resolve(native).capture) return answer(cudaErrorStreamCaptureUnsupported);
  drain(resolve(native));
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t) { return begin(); }
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* other) {
  std::swap(mode, *other);
  return cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t native, cudaStreamCaptureStatus* status, unsigned long long* id,
                                     cudaGraph_t* graph) {
  if (const cudaError_t error = begin()) return error;
  Graph* capture = resolve(native).capture;
  *status = !capture           ? cudaStreamCaptureStatusNone
            : capture->invalid ? cudaStreamCaptureStatusInvalidated
                               : cudaStreamCaptureStatusActive;
  if (capture) *id = capture->id, *graph = capture;
  return cudaSuccess;
}

cudaError_t cudaUserObjectCreate(cudaUserObject_t* object, void* p, cudaHostFn_t destroy, unsigned references, unsigned flags) {
  if (const cudaError_t error = begin()) return error;
  if (flags != cudaUserObjectNoDestructorSync) return answer(cudaErrorInvalidValue);
  *object = new UserObject{p, destroy, references};
  return cudaSuccess;
}
cudaError_t cudaUserObjectRelease(cudaUserObject_t object, unsigned references) {
  release(object, references);
  return cudaSuccess;
}
cudaError_t cudaGraphRetainUserObject(cudaGraph_t graph, cudaUserObject_t object, unsigned references, unsigned flags) {
  if (const cudaError_t error = begin()) return error;
  if (references != 1 || flags != cudaGraphUserObjectMove) return answer(cudaErrorInvalidValue);
  graph->objects.push_back(object);
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel) {
  ++settings().probes;
  if (const cudaError_t error = begin()) return error;
  if (!emulator::kernel_at(kernel)) return answer(cudaErrorInvalidDeviceFunction);
  *attributes = {512, 90};
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (const cudaError_t error = begin()) return error;
  const std::lock_guard guard(lock());
  if (attribute == cudaFuncAttributeNonPortableClusterSizeAllowed) {
    allowed(kernel).wide = value != 0;
  } else if (value <= kShared) {
    allowed(kernel).shared_bytes = value;
  } else {
    return answer(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* count, const void* kernel, int, std::size_t) {
  if (const cudaError_t error = begin()) return error;
  if (!emulator::kernel_at(kernel)) return answer(cudaErrorInvalidDeviceFunction);
  *count = kBlocks;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveClusters(int* count, const void* kernel, const cudaLaunchConfig_t* config) {
  ++settings().probes;
  if (const cudaError_t error = begin()) return error;
  const std::lock_guard guard(lock());
  if (static_cast<int>(config->dynamicSmemBytes) > allowed(kernel).shared_bytes) return answer(cudaErrorInvalidValue);
  *count = config->attrs[0].val.clusterDim.x <= 8 ? 2 : 1;
  return cudaSuccess;
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* kernel, void** arguments) {
  const cudaError_t failing = begin();
  const std::lock_guard guard(lock());
  Stream& stream = resolve(config->stream);
  const emulator::Kernel* known = emulator::kernel_at(kernel);
  if (!known) return answer(cudaErrorInvalidDeviceFunction);
  if (stream.device != current_device()) return answer(cudaErrorInvalidResourceHandle);
  const unsigned cluster = config->numAttrs ? config->attrs[0].val.clusterDim.x : 0;
  const Allowed& to = allowed(kernel);
  if (config->gridDim.x == 0 || config->blockDim.x > 512 || (cluster > 8 && !to.wide) ||
      static_cast<int>(config->dynamicSmemBytes) > to.shared_bytes) {
    return answer(cudaErrorInvalidValue);
  }
  Work work{known,
            config->gridDim.x,
            config->blockDim.x,
            cluster,
            cluster ? config->dynamicSmemBytes : kStaticShared,
            std::make_shared<std::vector<std::max_align_t>>(known->launch_bytes / sizeof(std::max_align_t) + 1)};
  std::memcpy(work.launch->data(), arguments[0], known->launch_bytes);
  known->clear_padding(work.launch->data());
  if (failing) {
    if (!settings().half_done) return failing;
    work.for_memory([&](const Block& block, char* begin) {
      if (block.owner) return;
      const Open open(block.device);
      std::memset(begin, 0x55, block.bytes);
    });
    return failing;
  }
  if (!stream.capture) {
    work.enqueue_on(stream, 0);
    return cudaSuccess;
  }
  const auto enqueue_on = [work, pool = stream.capture->pool](Stream& on) { work.enqueue_on(on, pool); };
  stream.capture->nodes.push_back({"kernel", enqueue_on});
  return cudaSuccess;
}
