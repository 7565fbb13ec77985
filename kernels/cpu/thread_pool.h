// ThreadPool: a fixed set of threads that run the tasks of one parallel loop at a time.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <type_traits>
#include <vector>

namespace plumbline {

// One thread owns a pool and calls ParallelFor; loops do not nest. Idle threads watch for work for
// some tens of microseconds, then sleep: the ops of a step follow one another without a wake-up, an
// idle engine costs nothing.
class ThreadPool {
 public:
  // num_threads >= 1 counts the calling thread.
  explicit ThreadPool(int num_threads);
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  ~ThreadPool();

  int num_threads() const { return static_cast<int>(unclaimed_.size()); }

  // Calls fn(int64_t task, int thread) for every task in [0, num_tasks) and returns when all have
  // returned. Thread i begins with the i-th even share of the tasks, in ascending order, so that
  // ops which cut the same rows into tasks find them in the caches of the core that made them; a
  // thread without tasks of its own helps the others. thread in [0, num_threads()) names the
  // thread's scratch memory; which thread runs which task is chance, so results must not depend on
  // it.
  template <typename Fn>
  void ParallelFor(int64_t num_tasks, Fn&& fn) {
    using Plain = std::remove_reference_t<Fn>;
    Run(
        num_tasks,
        [](const void* context, int64_t task, int thread) {
          (*static_cast<Plain*>(const_cast<void*>(context)))(task, thread);
        },
        &fn);
  }

 private:
  using TaskFn = void (*)(const void* context, int64_t task, int thread);

  void Run(int64_t num_tasks, TaskFn fn, const void* context);
  bool RunOneTask(int thread);
  bool RunTaskOf(int share, int thread);
  int64_t EndOfShare(int thread) const;
  void WorkerLoop(int thread);

  // Of the current loop; written while no task is left to claim, read after claiming one.
  TaskFn fn_ = nullptr;
  const void* context_ = nullptr;
  int64_t num_tasks_ = 0;

  struct alignas(64) Unclaimed {
    std::atomic<uint64_t> count{0};  // loop number << 32 | tasks not yet claimed
  };
  std::vector<Unclaimed> unclaimed_;  // by share
  std::atomic<uint32_t> num_done_{0};
  std::atomic<uint32_t> loop_{0};  // counts loops; sleepers wait for it to change
  std::atomic<int> num_sleepers_{0};
  std::atomic<bool> caller_sleeps_{false};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> threads_;
};

}  // namespace plumbline
