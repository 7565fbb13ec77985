#include "kernels/cpu/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

namespace plumbline {
namespace {

TEST(ThreadPool, RunsEveryTaskOnceAndReturnsAfterTheLast) {
  for (int num_threads : {1, 2, 5}) {
    ThreadPool pool(num_threads);
    std::vector<int> runs;  // plain memory: the loop's end orders the tasks before what follows
    for (int64_t num_tasks : {0, 1, 2, 3, 100}) {
      for (int repeat = 0; repeat < 200; ++repeat) {
        runs.assign(num_tasks, 0);
        pool.ParallelFor(num_tasks, [&](int64_t task, int thread) {
          ASSERT_GE(thread, 0);
          ASSERT_LT(thread, num_threads);
          ++runs[task];
        });
        ASSERT_EQ(runs, std::vector<int>(num_tasks, 1));
      }
    }
  }
}

TEST(ThreadPool, TasksOfOneThreadIndexNeverOverlap) {
  ThreadPool pool(3);
  std::vector<std::atomic<int>> busy(3);
  pool.ParallelFor(300, [&](int64_t, int thread) {
    EXPECT_EQ(busy[thread].fetch_add(1), 0);
    std::this_thread::yield();
    busy[thread].fetch_sub(1);
  });
}

TEST(ThreadPool, WakesThreadsThatFellAsleep) {
  ThreadPool pool(2);
  std::atomic<int> runs{0};
  for (int repeat = 0; repeat < 20; ++repeat) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    // Both tasks wait for each other: only two threads can finish them.
    std::atomic<int> arrived{0};
    pool.ParallelFor(2, [&](int64_t, int) {
      ++arrived;
      while (arrived < 2) std::this_thread::yield();
      ++runs;
    });
  }
  EXPECT_EQ(runs, 40);
}

TEST(ThreadPool, PoolsOfSeveralRanksWorkSideBySide) {
  std::vector<std::thread> ranks;
  std::atomic<int64_t> sum{0};
  for (int rank = 0; rank < 4; ++rank) {
    ranks.emplace_back([&] {
      ThreadPool pool(2);
      for (int repeat = 0; repeat < 50; ++repeat) {
        pool.ParallelFor(10, [&](int64_t task, int) { sum += task; });
      }
    });
  }
  for (std::thread& rank : ranks) rank.join();
  EXPECT_EQ(sum, 4 * 50 * 45);
}

}  // namespace
}  // namespace plumbline
