// Where a generator's state lives, and what fork() does to it. A private state reads kForked in the child, so that no
// child can repeat its parent's IDs; this costs the claim nothing: kForked is a value it compares with anyway. A shared
// state (of one process and its children, or of all that map one file) goes on in the child.
#pragma once

#include <pthread.h>

#include <atomic>
#include <new>

#include "snowflake.h"
#include "system.h"

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

inline void* page_of(State* state) {
  return reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(state) / system::page_bytes() * system::page_bytes());
}

// A page of its own for each state; nullptr where memory is short. Whoever has it must keep it as long as its worker may
// be used again: a generator made again within the same tick goes on from the last ID.
inline State* new_private_state() {
  void* memory = system::new_page(MAP_PRIVATE);
  if (!memory) return nullptr;
  Page* page = new (memory) Page;
  if (!system::wipe_at_fork(memory)) forget_at_fork(page);
  return &page->state;
}

inline State* new_shared_state() {
  void* memory = system::new_page(MAP_SHARED);
  return memory ? &(new (memory) Page)->state : nullptr;
}

// The state at byte `offset` of a file, initialised by whoever made the file. nullptr with errno where it fails.
inline State* map_state(int file, size_t offset) {
  void* memory = system::map_file(file);
  return memory ? reinterpret_cast<State*>(static_cast<char*>(memory) + offset) : nullptr;
}

// Takes a state of map_state() away from this process alone, in one step: what is there afterwards reads kClosed, and a
// claim under way either reached the file or fails. The last word of the file after that; 0, with errno, where memory is
// short.
inline uint64_t unmap_state(State* state) {
  void* page = page_of(state);
  State closed;
  closed.word.store(kClosed);
  const auto offset = static_cast<size_t>(reinterpret_cast<char*>(state) - static_cast<char*>(page));
  uint64_t last = 0;
  return system::take_away(page, offset, &closed, sizeof closed, &last) ? last : 0;
}

// Gives the page of a state of any kind back, once no thread can be in a claim on it.
inline void free_state(State* state) {
  void* page = page_of(state);
  for (const Page* unwiped = unwiped_pages.load(); unwiped; unwiped = unwiped->next) {
    if (unwiped == page) return;  // a fork may be walking the list at any time
  }
  system::free_page(page);
}

}  // namespace senet::ids
