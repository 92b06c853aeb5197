// Streams, events and graphs.
#include <algorithm>
#include <memory>
#include <set>
#include <stdexcept>
#include <utility>

#include "device.h"

namespace stand_in {
namespace {

thread_local int device_of_thread = 0;
thread_local Stream* streams_of_thread[kDevices] = {};
std::vector<Stream*>& all_streams() {
  static auto& all = *new std::vector<Stream*>;
  return all;
}
std::set<Graph*>& recording() {
  static auto& all = *new std::set<Graph*>;
  return all;
}
std::vector<std::string>& faults() {
  static auto& all = *new std::vector<std::string>;
  return all;
}

void learn(Seen& seen, const Stream* stream, Position at) {
  Position& known = seen[stream];
  known = std::max(known, at);
}

}  // namespace

std::recursive_mutex& lock() {
  static auto& mutex = *new std::recursive_mutex;
  return mutex;
}
Settings& settings() {
  static Settings all;
  return all;
}

int& current_device() { return device_of_thread; }
Stream& default_stream(int device) {
  static Stream* all = [] {
    auto* made = new Stream[kDevices];
    for (int d = 0; d < kDevices; ++d) made[d].device = d;
    return made;
  }();
  return all[device];
}
Stream*& current_stream(int device) {
  Stream*& stream = streams_of_thread[device];
  if (!stream) stream = &default_stream(device);
  return stream;
}
Stream* new_stream(int device) {
  const std::lock_guard guard(lock());
  auto* stream = new Stream;  // lives on, as torch's pool of streams does
  stream->device = device;
  all_streams().push_back(stream);
  return stream;
}

void enqueue(Stream& stream, std::function<void()> work) {
  const std::lock_guard guard(lock());
  stream.work.push_back(std::move(work));
  ++stream.queued;
}
void drain(Stream& stream, Position upto) {
  const std::lock_guard guard(lock());
  while (stream.done < upto && !stream.work.empty()) {
    const auto work = std::move(stream.work.front());
    stream.work.pop_front();
    work();
    ++stream.done;
  }
}
void synchronize(int device) {
  const std::lock_guard guard(lock());
  drain(default_stream(device));
  for (std::size_t i = 0; i < all_streams().size(); ++i) {
    if (all_streams()[i]->device == device) drain(*all_streams()[i]);
  }
}

void record(Event& event, Stream& stream) {
  const std::lock_guard guard(lock());
  event = {&stream, stream.queued, stream.seen};
}
void wait(Stream& stream, const Event& event) {
  const std::lock_guard guard(lock());
  if (!event.stream || event.stream == &stream) return;
  if (stream.capture || event.stream->capture) return fault("a stream that is recorded waits for another: not modelled");
  for (const auto& [other, at] : event.seen) learn(stream.seen, other, at);
  learn(stream.seen, event.stream, event.at);
  enqueue(stream, [stream = event.stream, at = event.at] { drain(*stream, at); });
}
bool ordered(const Stream& stream, const Stream* of, Position at) {
  if (!of || of == &stream || of->done >= at) return true;
  const auto found = stream.seen.find(of);
  return found != stream.seen.end() && found->second >= at;
}

// ---- graphs ----

Graph* begin_capture(Stream& stream) {
  const std::lock_guard guard(lock());
  static unsigned long long graphs = 0;
  auto* graph = new Graph;
  graph->id = ++graphs;
  graph->pool = begin_pool(stream);
  stream.capture = graph;
  recording().insert(graph);
  return graph;
}
void end_capture(Stream& stream) {
  const std::lock_guard guard(lock());
  const Graph* graph = std::exchange(stream.capture, nullptr);
  end_pool(stream);
  recording().erase(const_cast<Graph*>(graph));
  if (graph->invalid) throw std::runtime_error("stand-in: the recording was made invalid by what may not be called meanwhile");
}
void invalidate_recordings() {
  for (Graph* graph : recording()) graph->invalid = true;
}
bool is_recording() { return !recording().empty(); }

void replay(Graph& graph, Stream& stream) {
  const std::lock_guard guard(lock());
  wait(stream, graph.last);
  for (const Node& node : graph.nodes) node.enqueue(stream);
  record(graph.last, stream);
}
void destroy(Graph* graph) {
  const std::lock_guard guard(lock());
  if (graph->last.stream) drain(*graph->last.stream, graph->last.at);
  for (UserObject* object : graph->objects) release(object, 1);
  drop_pool(graph->pool);
  delete graph;
}
void release(UserObject* object, unsigned references) {
  object->references -= references;
  if (object->references > 0) return;
  object->destroy(object->object);
  delete object;
}

// ---- faults ----

void fault(const std::string& what) {
  const std::lock_guard guard(lock());
  faults().push_back(what);
}
std::vector<std::string> take_faults() {
  const std::lock_guard guard(lock());
  return std::exchange(faults(), {});
}

}  // namespace stand_in
