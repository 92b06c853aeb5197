// One launch for work in two phases, without waiting for the whole grid. Blocks draw tickets. The first phase of an image
// stands before the second phase of the same image in the order of tickets, `lag` images before it: in the steady state nobody
// waits, and x is still in the L2. Jobs that need all images come last.
//
// No deadlock, however few blocks are resident: a job waits only for jobs with smaller tickets, and a ticket is only ever held
// by a block that runs. The block with the smallest unfinished ticket works on it (the one it drew in advance is larger) and
// waits for nothing.
//
// The counters are zero before a launch and after it, so that a launch needs no memset before it. Two launches that may run at
// the same time need counters of their own.
#pragma once
#include "se/cuda/device.cuh"

namespace senet::cuda {

struct Tickets {
  unsigned* counters;  // drawn, blocks gone, then per image: tiles arrived, tiles + 1 when what they wrote is joined
  int images, lag;
  unsigned tiles;     // of an image
  unsigned last = 0;  // jobs behind all images
};

enum class Phase { first, second, last };
struct Job {
  Phase phase;
  int image, tile;  // of the last phase: 0 and the job's number
};

SENET_DEVICE Job job_of(unsigned ticket, const Tickets& t) {
  const unsigned tiles = t.tiles, head = t.lag * tiles, middle = (t.images - t.lag) * 2 * tiles;
  if (ticket < head) return {Phase::first, static_cast<int>(ticket / tiles), static_cast<int>(ticket % tiles)};
  ticket -= head;
  if (ticket < middle) {  // the second phase of image q, then the first of image q + lag
    const unsigned q = ticket / (2 * tiles), rest = ticket % (2 * tiles);
    if (rest < tiles) return {Phase::second, static_cast<int>(q), static_cast<int>(rest)};
    return {Phase::first, static_cast<int>(q) + t.lag, static_cast<int>(rest - tiles)};
  }
  ticket -= middle;
  if (ticket < head)
    return {Phase::second, t.images - t.lag + static_cast<int>(ticket / tiles), static_cast<int>(ticket % tiles)};
  return {Phase::last, 0, static_cast<int>(ticket - head)};
}

struct TicketWords {  // in shared memory
  unsigned drawn[2];
  unsigned last;
};

// work(job) for every job, each by one whole block. kRegister: a register can be spared in work() for the next ticket, which
// takes as long as a small job; it is waited for where it is stored, or spilled.
template <bool kRegister, class Work>
SENET_DEVICE void for_tickets(const Tickets& t, TicketWords& words, const Work& work) {
  const unsigned total = 2u * t.images * t.tiles + t.last;
  if (threadIdx.x == 0) words.drawn[0] = add_relaxed(t.counters, 1);
  __syncthreads();
  for (unsigned* drawn = words.drawn;; drawn = words.drawn + (drawn == words.drawn)) {  // in two places by turns
    const unsigned ticket = *drawn;
    if (ticket >= total) break;
    if constexpr (kRegister) {
      unsigned next = 0;
      if (threadIdx.x == 0) next = add_relaxed(t.counters, 1);
      work(job_of(ticket, t));
      if (threadIdx.x == 0) words.drawn[drawn == words.drawn] = next;
    } else {
      unsigned* next = words.drawn + (drawn == words.drawn);
      if (threadIdx.x == 0) *next = add_relaxed(t.counters, 1);
      work(job_of(ticket, t));
    }
    __syncthreads();  // shared memory is free again, and the next ticket is in it
  }
  if (threadIdx.x == 0) words.last = add_acquire_release(t.counters + 1, 1) == gridDim.x - 1;
  __syncthreads();
  if (!words.last) return;
  for (int i = threadIdx.x; i < t.images; i += blockDim.x) t.counters[kHeaderCounters + i] = 0;
  if (threadIdx.x < 2) t.counters[threadIdx.x] = 0;
}

// Ends the first phase of a tile. True on all threads of the block that comes last of the image's: it sees what the others
// wrote, joins it and calls publish().
SENET_DEVICE bool arrive(const Tickets& t, TicketWords& words, int image) {
  __syncthreads();
  if (threadIdx.x == 0) words.last = add_acquire_release(t.counters + kHeaderCounters + image, 1) == t.tiles - 1;
  __syncthreads();
  return words.last;
}
// Behind a barrier that follows what was joined.
SENET_DEVICE void publish(const Tickets& t, int image) {
  if (threadIdx.x == 0) add_release(t.counters + kHeaderCounters + image, 1);
}
// Begins the second phase: what the image's tiles wrote is joined and visible.
SENET_DEVICE void wait_for_image(const Tickets& t, int image) {
  if (threadIdx.x == 0) {
    while (load_acquire(t.counters + kHeaderCounters + image) <= t.tiles) pause();
  }
  __syncthreads();
}

// Begins a job of the last phase: the same of all images.
SENET_DEVICE void wait_for_all_images(const Tickets& t) {
  for (int image = threadIdx.x; image < t.images; image += blockDim.x) {
    while (load_acquire(t.counters + kHeaderCounters + image) <= t.tiles) pause();
  }
  __syncthreads();
}

}  // namespace senet::cuda
