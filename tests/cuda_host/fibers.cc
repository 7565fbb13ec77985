// Blocks of fibers (cuda_runtime.h), on Boost.Context.
#include <boost/context/detail/fcontext.hpp>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <utility>
#include <random>
#include <vector>

#include "tests/cuda_host/cuda_runtime.h"
#include "tests/cuda_host/stream.h"

namespace cuda_host {
namespace {

namespace context = boost::context::detail;

constexpr size_t kStackBytes = size_t{64} << 10;
constexpr size_t kMaxSharedBytes = size_t{227} << 10;  // of sm_90
constexpr unsigned char kPoison = 0xff;                // NaN in every float type

[[noreturn]] void Stop(const char* problem) {
  std::fprintf(stderr, "cuda_host: %s\n", problem);
  std::abort();
}

enum class State : uint8_t { kRunnable, kAtBlockBarrier, kAtWarpBarrier, kDone };

struct Copy {
  void* to;
  const void* from;  // null: zeros
};

struct Fiber {
  context::fcontext_t where = nullptr;
  Place place;
  State state = State::kRunnable;
  int exchange_parity = 0;
  std::vector<Copy> open_copies;                // not yet committed
  std::vector<std::vector<Copy>> copy_groups;   // committed, oldest first
};

struct Warp {
  int num_live = 0, num_arrived = 0;
  alignas(16) std::byte values[2][kWarp][kExchangeBytes];
};

// One block at a time, of one launch.
class Block {
 public:
  Block(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel, uint64_t seed)
      : kernel_(kernel), random_(seed), is_shuffled_(seed != 0) {
    const size_t num_threads = size_t{block.x} * block.y * block.z;
    if (num_threads == 0 || num_threads > 1024 || num_threads % kWarp != 0)
      Stop("a block is not of 32 to 1024 threads, in warps");
    if (shared_bytes > kMaxSharedBytes) Stop("a block wants more shared memory than a multiprocessor has");
    fibers_.resize(num_threads);
    warps_.resize(num_threads / kWarp);
    stacks_.reset(new std::byte[num_threads * kStackBytes]);
    shared_.resize(shared_bytes + 128);
    for (size_t i = 0; i < num_threads; ++i) {
      const unsigned t = static_cast<unsigned>(i);
      fibers_[i].place = {grid, block, {0, 0, 0}, {t % block.x, t / block.x % block.y, t / (block.x * block.y)}};
    }
  }

  void Run(uint3 index) {
    std::fill(shared_.begin(), shared_.end(), kPoison);
    num_live_ = fibers_.size();
    num_arrived_ = 0;
    for (Warp& warp : warps_) {
      warp.num_live = kWarp;
      warp.num_arrived = 0;
    }
    runnable_.clear();
    for (size_t i = 0; i < fibers_.size(); ++i) {
      Fiber& fiber = fibers_[i];
      fiber.place.block_index = index;
      fiber.state = State::kRunnable;
      fiber.open_copies.clear();
      fiber.copy_groups.clear();
      fiber.where = context::make_fcontext(stacks_.get() + (i + 1) * kStackBytes, kStackBytes, &Block::Enter);
      runnable_.push_back(i);
    }
    while (num_live_ > 0) {
      if (runnable_.empty()) Stop("deadlock: some threads of a block wait at a barrier that the others do not reach");
      if (is_shuffled_) std::shuffle(runnable_.begin(), runnable_.end(), random_);
      round_.swap(runnable_);
      runnable_.clear();
      for (size_t i : round_) {
        current_ = i;
        fibers_[i].where = context::jump_fcontext(fibers_[i].where, nullptr).fctx;
      }
    }
  }

  Fiber& current() { return fibers_[current_]; }
  size_t current_index() const { return current_; }
  Warp& warp() { return warps_[current_ / kWarp]; }
  std::byte* shared() {
    const uintptr_t at = reinterpret_cast<uintptr_t>(shared_.data());
    return reinterpret_cast<std::byte*>((at + 127) / 128 * 128);
  }

  void SyncBlock() {
    ++num_arrived_;
    Wait(State::kAtBlockBarrier);
  }
  void SyncWarp() {
    ++warp().num_arrived;
    Wait(State::kAtWarpBarrier);
  }

 private:
  static void Enter(context::transfer_t from);

  void Wait(State state) {
    Fiber& fiber = current();
    fiber.state = state;
    ReleaseBarriers();
    scheduler_ = context::jump_fcontext(scheduler_, nullptr).fctx;
  }

  // Those that all live threads have reached.
  void ReleaseBarriers() {
    const size_t w = current_ / kWarp;
    Warp& warp = warps_[w];
    if (warp.num_arrived > 0 && warp.num_arrived == warp.num_live) {
      warp.num_arrived = 0;
      Release(State::kAtWarpBarrier, w * kWarp, kWarp);
    }
    if (num_arrived_ > 0 && num_arrived_ == num_live_) {
      num_arrived_ = 0;
      Release(State::kAtBlockBarrier, 0, fibers_.size());
    }
  }
  void Release(State state, size_t first, size_t count) {
    for (size_t i = first; i < first + count; ++i) {
      if (fibers_[i].state != state) continue;
      fibers_[i].state = State::kRunnable;
      runnable_.push_back(i);
    }
  }

  const std::function<void()>& kernel_;
  std::mt19937_64 random_;
  const bool is_shuffled_;
  std::vector<Fiber> fibers_;
  std::vector<Warp> warps_;
  std::unique_ptr<std::byte[]> stacks_;
  std::vector<unsigned char> shared_;
  std::vector<size_t> runnable_, round_;
  size_t num_live_ = 0, num_arrived_ = 0, current_ = 0;
  context::fcontext_t scheduler_ = nullptr;
};

thread_local Block* running = nullptr;
thread_local uint64_t fiber_seed = 0;

void Block::Enter(context::transfer_t from) {
  Block& block = *running;
  block.scheduler_ = from.fctx;
  block.kernel_();
  Fiber& fiber = block.current();
  if (!fiber.open_copies.empty() || !fiber.copy_groups.empty()) Stop("a thread ends with copies it has not waited for");
  fiber.state = State::kDone;
  --block.num_live_;
  --block.warp().num_live;
  block.ReleaseBarriers();
  context::jump_fcontext(block.scheduler_, nullptr);
}

}  // namespace

const Place& Here() { return running->current().place; }
int Lane() { return static_cast<int>(running->current_index() % kWarp); }
void* DynamicSharedMemory() { return running->shared(); }
void SyncBlock() { running->SyncBlock(); }
void SyncWarp() { running->SyncWarp(); }

const std::byte (*ExchangeBytes(const void* own, size_t num_bytes))[kExchangeBytes] {
  Block& block = *running;
  Warp& warp = block.warp();
  // Two sets of values in turn: who is slow may still read the last one.
  const int parity = block.current().exchange_parity ^= 1;
  std::memcpy(warp.values[parity][Lane()], own, num_bytes);
  block.SyncWarp();
  return warp.values[parity];
}

void CopyAsync16(void* to, const void* from, bool valid) {
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0 || (valid && reinterpret_cast<uintptr_t>(from) % 16 != 0)) {
    Stop("an asynchronous copy is not aligned to 16 bytes");
  }
  running->current().open_copies.push_back({to, valid ? from : nullptr});
}

void CommitCopies() {
  Fiber& fiber = running->current();
  fiber.copy_groups.push_back(std::move(fiber.open_copies));
  fiber.open_copies.clear();
}

void WaitForCopies(int num_pending) {
  auto& groups = running->current().copy_groups;
  while (groups.size() > static_cast<size_t>(num_pending)) {
    for (const Copy& copy : groups.front()) {
      copy.from != nullptr ? std::memcpy(copy.to, copy.from, 16) : std::memset(copy.to, 0, 16);
    }
    groups.erase(groups.begin());
  }
}

void SetFiberSeed(uint64_t seed) { fiber_seed = seed; }

void Launch(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream, std::function<void()> kernel) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535) Stop("a grid is empty or too large");
  Enqueue("Launch", stream, [=, seed = fiber_seed, kernel = std::move(kernel)] {
    Block blocks(grid, block, shared_bytes, kernel, seed);
    Block* before = std::exchange(running, &blocks);
    for (unsigned z = 0; z < grid.z; ++z) {
      for (unsigned y = 0; y < grid.y; ++y) {
        for (unsigned x = 0; x < grid.x; ++x) blocks.Run({x, y, z});
      }
    }
    running = before;
  });
}

}  // namespace cuda_host
