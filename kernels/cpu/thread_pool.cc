#include "kernels/cpu/thread_pool.h"

#include <immintrin.h>

#include <chrono>

#include "kernels/check.h"

namespace plumbline {
namespace {

constexpr std::chrono::microseconds kSpinTime(50);

// Watches until ready() or kSpinTime has passed.
template <typename Ready>
bool SpinUntil(Ready ready) {
  const auto end = std::chrono::steady_clock::now() + kSpinTime;
  do {
    for (int i = 0; i < 16; ++i) {
      if (ready()) return true;
      _mm_pause();
    }
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

}  // namespace

ThreadPool::ThreadPool(int num_threads) : unclaimed_(num_threads) {
  PL_CHECK(num_threads >= 1);
  for (int i = 1; i < num_threads; ++i) threads_.emplace_back([this, i] { WorkerLoop(i); });
}

ThreadPool::~ThreadPool() {
  stop_ = true;
  ++loop_;
  loop_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::Run(int64_t num_tasks, TaskFn fn, const void* context) {
  PL_CHECK(num_tasks >= 0 && num_tasks <= UINT32_MAX);
  if (threads_.empty() || num_tasks <= 1) {
    for (int64_t task = 0; task < num_tasks; ++task) fn(context, task, 0);
    return;
  }
  fn_ = fn;
  context_ = context;
  num_tasks_ = num_tasks;
  num_done_.store(0, std::memory_order_relaxed);
  const uint64_t loop = loop_.load(std::memory_order_relaxed) + uint64_t{1};
  for (int i = 0; i < num_threads(); ++i) {
    const auto share = static_cast<uint64_t>(EndOfShare(i) - EndOfShare(i - 1));
    unclaimed_[i].count.store(loop << 32 | share, std::memory_order_release);
  }
  // A thread counts itself asleep before it looks at loop_ for the last time, so one of the two
  // sees the other.
  loop_.store(static_cast<uint32_t>(loop), std::memory_order_seq_cst);
  if (num_sleepers_.load(std::memory_order_seq_cst) > 0) loop_.notify_all();

  while (RunOneTask(0)) {
  }
  const auto all_done = [&] { return num_done_.load(std::memory_order_acquire) == num_tasks; };
  if (SpinUntil(all_done)) return;
  caller_sleeps_.store(true, std::memory_order_seq_cst);
  for (uint32_t done; (done = num_done_.load(std::memory_order_seq_cst)) != num_tasks;) {
    num_done_.wait(done, std::memory_order_seq_cst);
  }
  caller_sleeps_.store(false, std::memory_order_relaxed);
}

// Tasks [EndOfShare(i - 1), EndOfShare(i)) are thread i's to take first.
int64_t ThreadPool::EndOfShare(int thread) const { return num_tasks_ * (thread + 1) / num_threads(); }

bool ThreadPool::RunOneTask(int thread) {
  for (int i = 0; i < num_threads(); ++i) {
    if (RunTaskOf((thread + i) % num_threads(), thread)) return true;
  }
  return false;
}

// A thread that comes late finds nothing to claim and has touched nothing of the loop: the caller
// waits for tasks, not for threads.
bool ThreadPool::RunTaskOf(int share, int thread) {
  std::atomic<uint64_t>& count = unclaimed_[share].count;
  uint64_t unclaimed = count.load(std::memory_order_acquire);
  do {
    if (static_cast<uint32_t>(unclaimed) == 0) return false;
  } while (!count.compare_exchange_weak(unclaimed, unclaimed - 1, std::memory_order_acq_rel));
  const int64_t num_tasks = num_tasks_;
  fn_(context_, EndOfShare(share) - static_cast<uint32_t>(unclaimed), thread);
  const uint32_t done = num_done_.fetch_add(1, std::memory_order_seq_cst) + 1;
  if (done == num_tasks && caller_sleeps_.load(std::memory_order_seq_cst)) num_done_.notify_one();
  return true;
}

void ThreadPool::WorkerLoop(int thread) {
  while (true) {
    const uint32_t seen = loop_.load(std::memory_order_acquire);
    while (RunOneTask(thread)) {
    }
    if (stop_.load(std::memory_order_acquire)) return;
    if (SpinUntil([&] { return loop_.load(std::memory_order_acquire) != seen; })) continue;
    num_sleepers_.fetch_add(1, std::memory_order_seq_cst);
    loop_.wait(seen, std::memory_order_seq_cst);
    num_sleepers_.fetch_sub(1, std::memory_order_relaxed);
  }
}

}  // namespace plumbline
