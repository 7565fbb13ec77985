#include "cli/local_runner.h"

#include <condition_variable>
#include <mutex>

namespace plumbline {
namespace {

constexpr uint64_t kOnlyEpoch = 1;

class LocalRunner final : public StepRunner {
 public:
  LocalRunner(std::unique_ptr<LocalRanks> ranks, Mesh mesh, const CacheLimits& limits)
      : ranks_(std::move(ranks)), mesh_(mesh), limits_(limits) {}
  ~LocalRunner() override { Stop(); }

  void Start(std::function<void(RunnerEvent)> listener) override {
    listener_ = std::move(listener);
    listener_(RunnerReady{.epoch = kOnlyEpoch,
                          .capacity = {.num_blocks = ranks_->num_blocks(),
                                       .num_state_slots = ranks_->num_state_slots(),
                                       .max_step_tokens = limits_.max_step_tokens,
                                       .pipeline_stages = mesh_.pp}});
  }

  void Submit(StepPlan plan) override {
    {
      std::lock_guard lock(mutex_);
      if (stopped_ || plan.epoch != kOnlyEpoch) return;
      ++in_flight_;
    }
    ranks_->Submit(std::move(plan), [this](absl::StatusOr<StepResult> result) { Deliver(std::move(result)); });
  }

  void Stop() override {
    std::unique_lock lock(mutex_);
    stopped_ = true;
    idle_.wait(lock, [&] { return in_flight_ == 0; });
  }

 private:
  void Deliver(absl::StatusOr<StepResult> result) {
    {
      std::lock_guard lock(mutex_);
      if (stopped_) result = absl::CancelledError("stopped");
    }
    if (result.ok()) {
      listener_(*std::move(result));
    } else if (!absl::IsCancelled(result.status())) {
      listener_(RunnerLost{.epoch = kOnlyEpoch, .reason = result.status(), .fatal = true});
    }
    std::lock_guard lock(mutex_);
    --in_flight_;
    idle_.notify_all();
  }

  std::unique_ptr<LocalRanks> ranks_;
  Mesh mesh_;
  CacheLimits limits_;
  std::function<void(RunnerEvent)> listener_;
  std::mutex mutex_;
  std::condition_variable idle_;
  int in_flight_ = 0;
  bool stopped_ = false;
};

}  // namespace

std::unique_ptr<StepRunner> MakeLocalRunner(std::unique_ptr<LocalRanks> ranks, Mesh mesh, const CacheLimits& limits) {
  return std::make_unique<LocalRunner>(std::move(ranks), mesh, limits);
}

}  // namespace plumbline
