#include "se/cuda/counters.h"

#include <pthread.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <tuple>
#include <vector>

namespace senet::cuda {
namespace {

struct Block {
  unsigned* begin = nullptr;
  std::int64_t count = 0;
  bool zero = true;  // when nobody works on it
};
struct User {
  int device = 0;
  cudaStream_t stream = nullptr;
  unsigned long long recording = 0;  // 0: none

  bool operator<(const User& other) const {
    return std::tie(device, stream, recording) < std::tie(other.device, other.stream, other.recording);
  }
};

// The stream's recording, if there is one.
cudaError_t recording_of(cudaStream_t stream, unsigned long long& id, cudaGraph_t& graph) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  id = 0;
  graph = nullptr;
#if CUDART_VERSION >= 13000
  return cudaStreamGetCaptureInfo(stream, &status, &id, &graph);
#else
  return cudaStreamGetCaptureInfo_v2(stream, &status, &id, &graph);
#endif
}

// While this lives, this thread may allocate though somebody records a graph: none of it becomes part of one.
class Unrecorded {
 public:
  Unrecorded() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~Unrecorded() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  Unrecorded(const Unrecorded&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// Before this returns, on a stream of its own: another one may be recorded, and the default stream waits for others.
cudaError_t fill_with_zeros(const Block& block) {
  cudaStream_t stream;
  if (const cudaError_t error = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking)) return error;
  cudaError_t error = cudaMemsetAsync(block.begin, 0, sizeof(unsigned) * static_cast<std::size_t>(block.count), stream);
  if (error == cudaSuccess) error = cudaStreamSynchronize(stream);
  const cudaError_t ended = cudaStreamDestroy(stream);
  return error == cudaSuccess ? ended : error;
}

class Counters {
 public:
  cudaError_t get(cudaStream_t stream, std::int64_t count, unsigned*& counters) {
    User user;
    cudaGraph_t graph;
    if (const cudaError_t error = user_of(stream, user, graph)) return error;
    const std::lock_guard lock(mutex_);
    take_back();
    Block& block = used_[user];
    if (block.count < count || (!block.zero && graph)) {
      Block made;
      if (const cudaError_t error = take(user.device, count, made)) return error;
      if (const cudaError_t error = graph ? lend(graph, user, made) : cudaSuccess) return error;
      block = made;  // the one before is in use as long as the stream works; it is at most as large, and waits for the end
    } else if (!block.zero) {
      const auto bytes = sizeof(unsigned) * static_cast<std::size_t>(block.count);
      if (const cudaError_t error = cudaMemsetAsync(block.begin, 0, bytes, stream)) return error;
      block.zero = true;
    }
    counters = block.begin;
    return cudaSuccess;
  }

  void distrust(cudaStream_t stream) {
    User user;
    cudaGraph_t graph;
    if (user_of(stream, user, graph) != cudaSuccess) user.recording = 0;
    const std::lock_guard lock(mutex_);
    if (const auto found = used_.find(user); found != used_.end()) found->second.zero = false;
  }

  void release() {
    const std::lock_guard lock(mutex_);
    for (const Owned& owned : all_) cudaFree(owned.block.begin);
    all_.clear();
    unused_.clear();
    used_.clear();
  }

 private:
  struct Owned {
    int device;
    Block block;
  };
  struct Loan {
    Counters* from;
    User user;
    Block block;
  };

  static cudaError_t user_of(cudaStream_t stream, User& user, cudaGraph_t& graph) {
    user.stream = stream;
    if (const cudaError_t error = cudaGetDevice(&user.device)) return error;
    return recording_of(stream, user.recording, graph);
  }

  cudaError_t take(int device, std::int64_t count, Block& block) {
    const Unrecorded unrecorded;
    const auto fits = [&](const Owned& one) { return one.device == device && one.block.count >= count; };
    auto found = std::find_if(unused_.begin(), unused_.end(), fits);
    if (found == unused_.end()) {
      block.count = 1024;
      while (block.count < count) block.count *= 2;
      void* p;
      const std::size_t bytes = sizeof(unsigned) * static_cast<std::size_t>(block.count);
      if (const cudaError_t error = cudaMalloc(&p, bytes)) return error;
      block.begin = static_cast<unsigned*>(p);
      all_.push_back({device, block});
      found = unused_.insert(unused_.end(), all_.back());
    }
    if (const cudaError_t error = fill_with_zeros(found->block)) return error;  // it waits for another call
    block = found->block;
    unused_.erase(found);
    return cudaSuccess;
  }

  // Until the graph, all that was made of it, and what they have launched have ended.
  cudaError_t lend(cudaGraph_t graph, const User& user, const Block& block) {
    auto loan = std::make_unique<Loan>(Loan{this, user, block});
    cudaUserObject_t object;
    cudaError_t error = cudaUserObjectCreate(&object, loan.get(), &end_loan, 1, cudaUserObjectNoDestructorSync);
    if (error != cudaSuccess) {
      unused_.push_back({user.device, block});
      return error;
    }
    loan.release();  // the object's
    error = cudaGraphRetainUserObject(graph, object, 1, cudaGraphUserObjectMove);
    if (error != cudaSuccess) cudaUserObjectRelease(object, 1);
    return error;
  }
  // Perhaps in a thread of CUDA's, and where CUDA may not be called: it only leaves a note.
  static void end_loan(void* p) {
    const std::unique_ptr<Loan> loan(static_cast<Loan*>(p));
    const std::lock_guard lock(loan->from->ended_mutex_);
    loan->from->ended_.push_back(*loan);
  }
  void take_back() {
    std::vector<Loan> ended;
    {
      const std::lock_guard lock(ended_mutex_);
      ended.swap(ended_);
    }
    for (const Loan& loan : ended) {
      unused_.push_back({loan.user.device, loan.block});
      const auto found = used_.find(loan.user);
      if (found != used_.end() && found->second.begin == loan.block.begin) used_.erase(found);
    }
  }

  std::mutex mutex_, ended_mutex_;  // CUDA is called under the first alone
  std::map<User, Block> used_;
  std::vector<Owned> unused_, all_;
  std::vector<Loan> ended_;
};

// A forked process begins anew: the memory is its parent's, and so may be the locks.
Counters*& of_process() {
  static Counters* counters = [] {
    pthread_atfork(nullptr, nullptr, [] { of_process() = new Counters; });
    std::atexit([] { of_process()->release(); });
    return new Counters;  // a graph may outlive everything else
  }();
  return counters;
}

}  // namespace

cudaError_t counters_for(cudaStream_t stream, std::int64_t count, unsigned*& counters) {
  return of_process()->get(stream, count, counters);
}
void distrust_counters(cudaStream_t stream) { of_process()->distrust(stream); }

}  // namespace senet::cuda
