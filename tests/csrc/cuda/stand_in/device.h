// Devices that work late: what is enqueued runs when somebody waits for it, on the emulator, and until then a device's memory
// cannot be touched. What breaks a rule is a fault, which take_faults() tells: a launch that is given memory which is free, of
// another device, or still in use by a stream that it does not wait for.
//
// It knows nothing of two launches at the same time, of occupancy, or of what a driver may say.
#pragma once
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

namespace stand_in {

constexpr int kDevices = 2;

// ---- streams ----

struct Graph;
using Position = std::int64_t;  // of a piece of work in its stream; the first has 1
using Seen = std::map<const struct Stream*, Position>;

struct Stream {
  int device = 0;
  Position queued = 0, done = 0;
  std::deque<std::function<void()>> work;
  Seen seen;                 // of other streams: what is done before whatever comes next here
  Graph* capture = nullptr;  // records what is enqueued, instead of running it
  std::vector<std::int64_t> pools;
};
struct Event {
  Stream* stream = nullptr;
  Position at = 0;
  Seen seen;
};

// One lock for everything; work runs under it too.
std::recursive_mutex& lock();
int& current_device();  // of this thread, as the next
Stream*& current_stream(int device);
Stream& default_stream(int device);
Stream* new_stream(int device);
inline Stream& resolve(Stream* native) { return native ? *native : default_stream(current_device()); }

void enqueue(Stream& stream, std::function<void()> work);
void drain(Stream& stream, Position upto);
inline void drain(Stream& stream) { drain(stream, stream.queued); }
void synchronize(int device);
void record(Event& event, Stream& stream);
void wait(Stream& stream, const Event& event);
// Whether all work of `of` up to there is done before what comes next in the stream.
bool ordered(const Stream& stream, const Stream* of, Position at);

// ---- memory ----

enum class State { free, used, kept };  // kept: released, but of a pool, whose graph may still use it
struct Block {
  std::size_t bytes = 0;
  int device = 0;
  State state = State::free;
  std::int64_t pool = 0;         // 0: none
  Stream* owner = nullptr;       // of torch's memory; null: cudaMalloc's
  std::vector<Stream*> also;     // streams that torch has been told of
  const Stream* user = nullptr;  // the owner, or the last that used cudaMalloc's: who comes next must wait for it
  Position used = 0;             // up to here
};
// Of torch: in the order of the current stream, in its pool if it has one; NaNs from now on, and again when it is free.
void* allocate(int device, std::size_t bytes);
void release(void* p);
void also_used_on(const void* p, Stream& stream);
// Of cudaMalloc and cudaFree: whatever there was before.
void* allocate_raw(int device, std::size_t bytes);
bool release_raw(void* p);
// Of the device whose memory p is; null where it is none.
Block* block_of(const void* p, int& device, char** begin = nullptr);

// A device's memory can be touched while this lives.
class Open {
 public:
  explicit Open(int device);
  ~Open();
  Open(const Open&) = delete;

 private:
  int device_;
};

// As during a graph's recording, and torch's warm-up for one: what is allocated for the stream until end_pool() belongs to the
// pool, and is not used for anything else until the pool is dropped. live(): what of it was not released.
std::int64_t begin_pool(Stream& stream);
void end_pool(Stream& stream);
std::vector<std::uintptr_t> live(std::int64_t pool);
void drop_pool(std::int64_t pool);

// ---- graphs ----

struct UserObject {
  void* object;
  void (*destroy)(void*);
  unsigned references;
};
void release(UserObject* object, unsigned references);

struct Node {
  std::string kind;  // kernel or memset
  std::function<void(Stream&)> enqueue;
};
struct Graph {
  unsigned long long id = 0;
  std::int64_t pool = 0;
  bool invalid = false;
  std::vector<Node> nodes;
  std::vector<UserObject*> objects;
  Event last;  // of its last replay: a graph runs once at a time
};
Graph* begin_capture(Stream& stream);
void end_capture(Stream& stream);
void replay(Graph& graph, Stream& stream);
void destroy(Graph* graph);

// ---- what tests ask and say ----

void fault(const std::string& what);
std::vector<std::string> take_faults();
int errors_left();  // threads in which cudaGetLastError() would still return an error

struct Settings {
  int resident = 3;        // clusters, or blocks, that run at the same time
  int fail_after = -1;     // calls of the runtime until one fails; -1: none
  int failure = 0;         // with this error
  bool half_done = false;  // a launch that fails leaves garbage in memory of cudaMalloc's
  unsigned garbage = 0;    // where not 0: what every word of a memset there becomes
  std::int64_t launches = 0, clusters = 0, probes = 0, mallocs = 0;  // counted
};
Settings& settings();

}  // namespace stand_in
