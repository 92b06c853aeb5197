// Where a generator's state lives, and what fork() does to it. A private state reads kForked in the child, so that no
// child can repeat its parent's IDs; this costs the claim nothing: kForked is a value it compares with anyway. A shared
// state (of one process and its children, or of all that map one file) goes on in the child.
#pragma once

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <new>

#include "snowflake.h"

namespace senet::ids {

struct Page {
  State state;
  Page* next = nullptr;
};

// Pages that the kernel cannot wipe; the child of a fork() walks them. Pushed without a lock, because a lock held by
// another thread at fork() would stay locked in the child.
inline std::atomic<Page*> unwiped_pages{nullptr};

inline void forget_words() {
  for (Page* page = unwiped_pages.load(); page; page = page->next) page->state.word.store(kForked);
}

inline void forget_at_fork(Page* page) {
  static const int registered = pthread_atfork(nullptr, nullptr, forget_words);
  static_cast<void>(registered);
  page->next = unwiped_pages.load();
  while (!unwiped_pages.compare_exchange_weak(page->next, page)) {
  }
}

inline size_t page_bytes() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

inline void* page_of(State* state) {
  return reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(state) / page_bytes() * page_bytes());
}

inline void* new_page(int kind) {
  void* memory = mmap(nullptr, page_bytes(), PROT_READ | PROT_WRITE, kind | MAP_ANONYMOUS, -1, 0);
  return memory == MAP_FAILED ? nullptr : memory;
}

// A page of its own for each state; nullptr where memory is short. Whoever has it must keep it as long as its worker may
// be used again: a generator made again within the same tick goes on from the last ID.
inline State* new_private_state() {
  void* memory = new_page(MAP_PRIVATE);
  if (!memory) return nullptr;
  Page* page = new (memory) Page;
#ifdef MADV_WIPEONFORK  // Linux 4.14; unlike pthread_atfork it also sees a clone() that bypasses libc
  if (madvise(memory, page_bytes(), MADV_WIPEONFORK) == 0) return &page->state;
#endif
  forget_at_fork(page);
  return &page->state;
}

inline State* new_shared_state() {
  void* memory = new_page(MAP_SHARED);
  return memory ? &(new (memory) Page)->state : nullptr;
}

// The state at byte `offset` of a file, initialised by whoever made the file. nullptr with errno where it fails.
inline State* map_state(int file, size_t offset) {
  void* memory = mmap(nullptr, page_bytes(), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  return memory == MAP_FAILED ? nullptr : reinterpret_cast<State*>(static_cast<char*>(memory) + offset);
}

// Takes a state of map_state() away from this process alone, in one step: what is there afterwards reads kClosed, and a
// claim under way either reached the file or fails. The last word of the file after that; 0, with errno, where memory is
// short.
inline uint64_t unmap_state(State* state) {
  void* page = page_of(state);
  const auto offset = reinterpret_cast<char*>(state) - static_cast<char*>(page);
  void* file = mremap(page, 0, page_bytes(), MREMAP_MAYMOVE);  // of size 0: mapped a second time
  if (file == MAP_FAILED) return 0;
  uint64_t last = 0;
  if (void* closed = new_page(MAP_PRIVATE)) {
    (new (static_cast<char*>(closed) + offset) State)->word.store(kClosed);
    if (mremap(closed, page_bytes(), page_bytes(), MREMAP_MAYMOVE | MREMAP_FIXED, page) != MAP_FAILED) {
      last = reinterpret_cast<State*>(static_cast<char*>(file) + offset)->word.load();
    }
  }
  munmap(file, page_bytes());
  return last;
}

// Gives the page of a state of any kind back, once no thread can be in a claim on it.
inline void free_state(State* state) {
  void* page = page_of(state);
  for (const Page* unwiped = unwiped_pages.load(); unwiped; unwiped = unwiped->next) {
    if (unwiped == page) return;  // a fork may be walking the list at any time
  }
  munmap(page, page_bytes());
}

}  // namespace senet::ids
