// Where a generator's word lives, and what fork() does to it: in the child it reads kForked, so that no child can
// repeat its parent's IDs. This costs the claim nothing: kForked is a value it compares with anyway.
#pragma once

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <new>

#include "snowflake.h"

namespace senet::ids {

struct Page {
  Word word{kFresh};
  Page* next = nullptr;
};

// Pages that the kernel cannot wipe; the child of a fork() walks them. Pushed without a lock, because a lock held by
// another thread at fork() would stay locked in the child.
inline std::atomic<Page*> unwiped_pages{nullptr};

inline void forget_words() {
  for (Page* page = unwiped_pages.load(); page; page = page->next) page->word.store(kForked);
}

inline void forget_at_fork(Page* page) {
  static const int registered = pthread_atfork(nullptr, nullptr, forget_words);
  static_cast<void>(registered);
  page->next = unwiped_pages.load();
  while (!unwiped_pages.compare_exchange_weak(page->next, page)) {
  }
}

// A page of its own for each word, never given back: a generator made again within the same tick must go on from the
// last ID. nullptr where memory is short.
inline Word* new_word() {
  const auto bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  Page* page = new (memory) Page;
#ifdef MADV_WIPEONFORK  // Linux 4.14; unlike pthread_atfork it also sees a clone() that bypasses libc
  if (madvise(memory, bytes, MADV_WIPEONFORK) == 0) return &page->word;
#endif
  forget_at_fork(page);
  return &page->word;
}

}  // namespace senet::ids
