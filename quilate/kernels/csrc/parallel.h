// Scratch memory, and tasks of uneven size over PyTorch's own threads.
#pragma once
#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace quilate {

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

template <typename T>
using Buffer = std::unique_ptr<T[], Free>;

// Uninitialized memory aligned to a cache line.
template <typename T>
Buffer<T> make_buffer(int64_t count) {
  const size_t bytes = (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
  void* memory = std::aligned_alloc(64, bytes == 0 ? 64 : bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return Buffer<T>(static_cast<T*>(memory));
}

// Call `work(next)` once a thread; `next()` hands out 0, 1, ..., tasks - 1, each once, then -1. A task's result must
// not depend on the thread that computes it, so the sum of results does not depend on timing.
template <typename Work>
void over_tasks(int64_t tasks, const Work& work) {
  std::atomic<int64_t> counter{0};
  const auto next = [&]() -> int64_t {
    const int64_t task = counter.fetch_add(1);
    return task < tasks ? task : -1;
  };
  const int64_t threads = std::min<int64_t>(tasks, torch::stable::get_num_threads());
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread) work(next);
  });
}

}  // namespace quilate
