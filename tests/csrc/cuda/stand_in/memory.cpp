// The devices' memory: for each a range of addresses, closed but for the device's own work.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "device.h"

namespace stand_in {
namespace {

constexpr std::size_t kArena = std::size_t{8} << 30, kAlign = 512;

struct Arena {
  char* begin;
  int open = 0;
  std::map<char*, Block> blocks;  // all of the range, free or not

  explicit Arena(int device) {
    void* p = mmap(nullptr, kArena, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) std::abort();
    begin = static_cast<char*>(p);
    blocks[begin].bytes = kArena;
    blocks[begin].device = device;
  }
};
Arena& arena(int device) {
  static Arena* all = [] {
    auto* made = static_cast<Arena*>(std::malloc(sizeof(Arena) * kDevices));
    for (int d = 0; d < kDevices; ++d) new (made + d) Arena(d);
    return made;
  }();
  return all[device];
}

std::int64_t pools = 0;

void* take(int device, std::size_t bytes, const Block& as) {
  Arena& a = arena(device);
  const std::size_t size = (bytes + kAlign - 1) / kAlign * kAlign + kAlign;  // a gap behind each
  for (auto& [at, block] : a.blocks) {
    if (block.state != State::free || block.bytes < size) continue;
    if (block.bytes > size) {
      Block& rest = a.blocks[at + size];
      rest.bytes = block.bytes - size;
      rest.device = device;
    }
    block = as;
    block.bytes = size;
    block.device = device;
    block.state = State::used;
    const Open open(device);
    std::memset(at, 0xff, size);
    return at;
  }
  std::fprintf(stderr, "stand-in: out of memory\n");
  std::abort();
}

void give_back(char* at) {
  int device = 0;
  block_of(at, device);
  Arena& a = arena(device);
  const auto here = a.blocks.find(at);
  {
    const Open open(device);
    std::memset(at, 0xff, here->second.bytes);
  }
  const std::size_t bytes = here->second.bytes;
  here->second = Block();
  here->second.bytes = bytes;
  here->second.device = device;
  const auto join = [&](auto left, auto right) {
    if (left == a.blocks.end() || right == a.blocks.end() || left->second.state != State::free ||
        right->second.state != State::free)
      return;
    left->second.bytes += right->second.bytes;
    a.blocks.erase(right);
  };
  join(here, std::next(here));
  if (here != a.blocks.begin()) join(std::prev(here), here);
}

struct AtExit {
  pid_t pid = getpid();
  ~AtExit() {  // loaded before whoever calls cudaMalloc, so it ends after them
    if (getpid() != pid) return;
    int kept = 0;
    for (int d = 0; d < kDevices; ++d) {
      for (const auto& [at, block] : arena(d).blocks) kept += block.state == State::used && !block.owner;
    }
    if (kept == 0) return;
    std::fprintf(stderr, "stand-in: %d allocations of cudaMalloc are left at exit\n", kept);
    std::fflush(stderr);
    _exit(86);
  }
} at_exit;

}  // namespace

Open::Open(int device) : device_(device) {
  lock().lock();
  Arena& a = arena(device);
  if (a.open++ == 0) mprotect(a.begin, kArena, PROT_READ | PROT_WRITE);
}
Open::~Open() {
  Arena& a = arena(device_);
  if (--a.open == 0) mprotect(a.begin, kArena, PROT_NONE);
  lock().unlock();
}

Block* block_of(const void* p, int& device, char** begin) {
  for (int d = 0; d < kDevices; ++d) {
    Arena& a = arena(d);
    char* at = static_cast<char*>(const_cast<void*>(p));
    if (at < a.begin || at >= a.begin + kArena) continue;
    device = d;
    const auto found = std::prev(a.blocks.upper_bound(at));
    if (begin) *begin = found->first;
    return &found->second;
  }
  return nullptr;
}

void* allocate(int device, std::size_t bytes) {
  if (bytes == 0) return nullptr;
  const std::lock_guard guard(lock());
  Block as;
  as.owner = current_stream(device);
  as.user = as.owner;
  if (!as.owner->pools.empty()) as.pool = as.owner->pools.back();
  return take(device, bytes, as);
}

void release(void* p) {
  if (!p) return;
  const std::lock_guard guard(lock());
  int device = 0;
  Block& block = *block_of(p, device);
  if (block.pool != 0) {
    block.state = State::kept;
    return;
  }
  std::vector<std::pair<Stream*, Position>> others;
  for (Stream* stream : block.also) others.emplace_back(stream, stream->queued);
  enqueue(*block.owner, [p, others] {
    for (const auto& [stream, upto] : others) drain(*stream, upto);
    give_back(static_cast<char*>(p));
  });
}

void also_used_on(const void* p, Stream& stream) {
  const std::lock_guard guard(lock());
  int device = 0;
  if (Block* block = block_of(p, device)) block->also.push_back(&stream);
}

void* allocate_raw(int device, std::size_t bytes) { return take(device, bytes, Block()); }
bool release_raw(void* p) {
  int device = 0;
  char* begin = nullptr;
  const Block* block = block_of(p, device, &begin);
  if (!block || block->state != State::used || block->owner || begin != p) return false;
  give_back(begin);
  return true;
}

std::int64_t begin_pool(Stream& stream) {
  const std::lock_guard guard(lock());
  stream.pools.push_back(++pools);
  return pools;
}
void end_pool(Stream& stream) { stream.pools.pop_back(); }

std::vector<std::uintptr_t> live(std::int64_t pool) {
  const std::lock_guard guard(lock());
  std::vector<std::uintptr_t> found;
  for (int d = 0; d < kDevices; ++d) {
    for (const auto& [at, block] : arena(d).blocks) {
      if (block.pool == pool && block.state == State::used) found.push_back(reinterpret_cast<std::uintptr_t>(at));
    }
  }
  return found;
}

void drop_pool(std::int64_t pool) {
  const std::lock_guard guard(lock());
  for (int d = 0; d < kDevices; ++d) {
    std::vector<char*> kept;
    for (auto& [at, block] : arena(d).blocks) {
      if (block.pool != pool) continue;
      if (block.state == State::kept) kept.push_back(at);
      block.pool = 0;
    }
    for (char* at : kept) give_back(at);
  }
}

}  // namespace stand_in
