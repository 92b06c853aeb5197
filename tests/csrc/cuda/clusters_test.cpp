// The cluster kernels and their planner on the emulator against the naive implementation. A plain program; exits 1 on a
// failure.
//   clusters_test [n]    about every n-th of the cases, default 1: all
#if (defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)) && !defined(SENET_FEW_TYPES)
#define SENET_FEW_TYPES  // instrumented kernels compile slowly, and races do not depend on types
#endif
#include "cases.h"
#include "se/cuda/cluster_backward.cuh"
#include "se/cuda/cluster_forward.cuh"

namespace {

constexpr int kBlock = 64;

struct Schedule {
  unsigned seed;
  int size, images, chunk_bytes;  // of the plan; only the size changes bits of the result
  int resident, clusters;
  bool save, in_place;

  int bits() const { return size; }
  std::string name() const {
    return "seed " + std::to_string(seed) + ", clusters of " + std::to_string(size) + " with " + std::to_string(images) +
           ", chunks of " + std::to_string(chunk_bytes) + ", resident " + std::to_string(resident) + " of " +
           std::to_string(clusters) + (save ? ", saved" : "") + (in_place ? ", in place" : "");
  }
};

template <class Kernel, class Launch>
void emulate(const Launch& launch, const Schedule& schedule) {
  const unsigned size = unsigned(launch.cut.plan.size), clusters = unsigned(launch.cut.plan.clusters);
  emulator::launch(clusters * size, kBlock, std::size_t(launch.cut.space.total), {schedule.seed, schedule.resident, size},
                   [&](void* shared) { Kernel::run(launch, static_cast<unsigned char*>(shared)); });
}

// kernel.template operator()<T, W>() for the types that clusters know
template <class Body>
void for_cluster_types(const Case& c, const Body& body) {
  for_types(c, [&]<class T, class W>() {
    if constexpr (!std::is_same_v<T, double>) body.template operator()<T, W>();
  });
}

// The kernel of p and of the plan, for the types of the case.
template <template <class, class, bool, int> class Kernel, class P, class Launch>
void emulate_any(const Case& c, const P& p, const Launch& launch, const Schedule& schedule) {
  for_cluster_types(c, [&]<class T, class W>() {
    if (cuda::is_general(p)) {
      emulate<Kernel<T, W, true, 1>>(launch, schedule);
    } else if (launch.cut.plan.images == 1) {
      emulate<Kernel<T, W, false, 1>>(launch, schedule);
    } else {
      emulate<Kernel<T, W, false, cuda::kClusterImages>>(launch, schedule);
    }
  });
}

// False where the image cannot be cut so.
template <class P>
bool plan_of(const P& p, const Schedule& schedule, cuda::ClusterPlan& plan) {
  const bool backward = std::is_same_v<P, BackwardParams>;
  const int images = cuda::is_general(p) ? 1 : schedule.images;
  if (!cuda::cut_cluster(p, backward, schedule.size, kBlock, images, plan, schedule.chunk_bytes)) return false;
  plan.clusters = std::min(schedule.clusters, int((p.shape.B + plan.images - 1) / plan.images));
  return true;
}

struct Tested {
  static bool can(const Case& c) { return c.dtype != Dtype::f64; }
  static std::vector<Schedule> schedules(unsigned seed) {
    std::mt19937 random(seed);
    const int sizes[] = {1, 2, 4, 3, 2, 4, 8}, size = seed % 28 == 4 ? 16 : sizes[seed % 7], other = sizes[seed / 7 % 3];
    const auto chunk = [&] { return 64 << random() % 6; };
    return {{seed, size, 1, chunk(), 1, 2, true, false},
            {seed + 1, size, 1 + int(random() % 4), chunk(), 2, 1 + int(random() % 3), false, false},
            {seed + 2, other, 1 + int(random() % 4), chunk(), 2, 2, false, true}};
  }

  static bool run(const std::string& where, const Case& c, const Setting&, const Schedule& schedule, const ForwardCall& call) {
    cuda::ClusterPlan plan;
    if (!plan_of(call.p, schedule, plan)) return false;
    cuda::Scratch none(nullptr, c.dtype);
    emulate_any<cuda::ClusterForward>(c, call.p, cuda::launch_of(call.p, plan, none), schedule);
    check(none.bytes() == 0, "%s: forward takes scratch that was not given", where.c_str());
    return true;
  }

  static bool run(const std::string& where, const Case& c, const Setting&, const Schedule& schedule, const BackwardCall& call) {
    cuda::ClusterPlan plan;
    if (!plan_of(call.p, schedule, plan)) return false;
    cuda::Scratch count(nullptr, c.dtype);
    cuda::launch_of(call.p, plan, count);
    Output scratch(std::size_t(count.bytes() / 4), c.sum_dtype());
    cuda::Scratch taken(scratch.data(), c.dtype);
    const cuda::ClusterBackwardLaunch launch = cuda::launch_of(call.p, plan, taken);
    emulate_any<cuda::ClusterBackward>(c, call.p, launch, schedule);
    for_cluster_types(c, [&]<class T, class W>() {
      const int jobs = cuda::weight_jobs(call.p, kBlock);
      if (jobs == 0) return;
      emulator::launch(unsigned(jobs), kBlock, kBlock / 32 * sizeof(double), {schedule.seed, 3}, [&](void* shared) {
        cuda::WeightGradients<T, W>{launch.call, launch.sums, launch.cut.images, static_cast<double*>(shared)}.run(
            int(cuda::blockIdx.x));
      });
    });
    check(scratch.guarded(), "%s: wrote outside of the scratch", where.c_str());
    return true;
  }
};

Params params_of(const Shape& shape, Dtype dtype) {
  Params p;
  p.shape = shape;
  p.dtype = p.weight_dtype = dtype;
  return p;
}

void test_plan() {
  const cuda::Gpu gpu;
  const auto chosen = [&](const Shape& shape, Dtype dtype, bool backward, cuda::Kernel wanted) {
    const Params p = params_of(shape, dtype);
    return cuda::choose(p, backward, gpu, wanted, true, cuda::h100_clusters, cuda::plan(shape, dtype, gpu));
  };
  struct Known {
    Shape shape;
    Dtype dtype;
    int size, images;                 // 0: the ticket kernel
    std::array<int, 3> slice, chunk;  // channels, rows, columns
  };
  const Known known[] = {
      {{1, 1, 256, 3136, 16}, Dtype::f16, 0, 1, {}, {}},
      {{256, 1, 256, 3136, 16}, Dtype::f16, 0, 1, {}, {}},  // within 10 % of the ticket kernel
      {{1, 1, 2048, 49, 128}, Dtype::f16, 16, 1, {128, 1, 49}, {41, 1, 49}},
      {{256, 1, 2048, 49, 128}, Dtype::f16, 8, 4, {256, 1, 49}, {41, 1, 49}},    // four images a weight
      {{256, 49, 2048, 1, 128}, Dtype::f16, 4, 2, {2048, 13, 1}, {2048, 1, 1}},  // channels_last: rows
      {{32, 49, 2048, 1, 128}, Dtype::f16, 8, 3, {2048, 7, 1}, {2048, 1, 1}},    // one turn of three images
      {{8, 1, 48, 36100, 12}, Dtype::f32, 0, 1, {}, {}},                         // an image of 6.9 MB
      {{8, 1, 64, 49, 16}, Dtype::f64, 0, 1, {}, {}},
  };
  for (const Known& k : known) {
    const cuda::ClusterPlan plan = chosen(k.shape, k.dtype, false, cuda::Kernel::automatic);
    const cuda::Tiles& t = plan.slices;
    const bool same = plan.size == k.size && plan.images == k.images &&
                      (!plan || (std::array{t.channels, t.rows, t.columns} == k.slice &&
                                 std::array{plan.chunk_channels, plan.chunk_rows, plan.chunk_columns} == k.chunk));
    check(same, "the plan of [%d %d %d %d]: clusters of %d with %d images, slices of %d x %d x %d, chunks of %d x %d x %d",
          int(k.shape.B), int(k.shape.O), int(k.shape.K), int(k.shape.I), plan.size, plan.images, t.channels, t.rows, t.columns,
          plan.chunk_channels, plan.chunk_rows, plan.chunk_columns);
    check(!chosen(k.shape, k.dtype, false, cuda::Kernel::ticket), "the ticket kernel was wanted");
  }
  const Params p = params_of({256, 1, 2048, 49, 128}, Dtype::f16);
  const cuda::Plan ticket = cuda::plan(p.shape, p.dtype, gpu);
  const auto none = [](const cuda::ClusterPlan&) { return 0; };
  const auto portable = [](const cuda::ClusterPlan& plan) { return plan.size <= 4 ? cuda::h100_clusters(plan) : 0; };
  check(!cuda::choose(p, false, gpu, cuda::Kernel::automatic, true, none, ticket), "clusters that do not fit the GPU");
  check(cuda::choose(p, false, gpu, cuda::Kernel::automatic, true, portable, ticket).size == 4, "clusters that do not fit");
  check(cuda::choose(p, false, gpu, cuda::Kernel::automatic, false, cuda::h100_clusters, ticket).images == 1,
        "several images without a kernel for them");
  check(bool(chosen({256, 1, 256, 3136, 16}, Dtype::f16, false, cuda::Kernel::cluster)), "the cluster kernel was wanted");
  std::mt19937 random(7);
  int plans = 0;
  for (int i = 0; i < 3000; ++i) {
    const auto size = [&] { return int64_t(1 << random() % 11 | random() % 50); };
    const auto often_one = [&] { return random() % 2 ? 1 : size(); };
    const Shape shape{1 + size() % 300, often_one(), size(), often_one(), 1 + int64_t(random() % 300)};
    const Dtype dtype = random() % 2 ? Dtype::f16 : Dtype::f32;
    const bool backward = random() % 2;
    const int blocks = 1 << random() % 5, threads = random() % 2 ? 512 : 256, images = 1 + int(random() % 4);
    cuda::ClusterPlan plan;
    const Params p = params_of(shape, dtype);
    if (!cuda::cut_cluster(p, backward, blocks, threads, images, plan)) continue;
    ++plans;
    const cuda::Tiles& t = plan.slices;
    const auto covers = [](int64_t size, int tile, int count) {
      return int64_t(tile) * count >= size && int64_t(tile) * (count - 1) < size;
    };
    const int64_t elements = int64_t(t.channels) * t.rows * t.columns;
    const bool run = t.rows > 1 ? t.channels == shape.K && t.columns == shape.I : t.channels == 1 || t.columns == shape.I;
    const cuda::ClusterSpace space = cuda::space_of(p, plan, backward);
    const bool good = covers(shape.K, t.channels, t.channel_tiles) && covers(shape.O, t.rows, t.row_tiles) &&
                      covers(shape.I, t.columns, t.column_tiles) && t.count() <= blocks && run &&
                      plan.chunks <= cuda::kClusterChunks && plan.chunk_elements() * plan.chunks >= elements &&
                      (plan.chunks == 1 || plan.chunk_elements() * item_bytes(dtype) >= 32) && plan.lanes <= threads &&
                      space.slice_bytes >= elements * item_bytes(dtype) + 14 && space.slices % 128 == 0;
    check(good, "the plan of [%d %d %d %d], clusters of %d: slices of %d x %d x %d, %d chunks", int(shape.B), int(shape.O),
          int(shape.K), int(shape.I), blocks, t.channels, t.rows, t.columns, plan.chunks);
  }
  check(plans > 1000, "%d plans of 3000", plans);
}

}  // namespace

int main(int count, char** arguments) { return test<Tested>(count, arguments, test_plan); }
