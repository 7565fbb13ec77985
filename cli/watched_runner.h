// WatchedRunner: passes a StepRunner's events through and remembers what an operator waits for: ready, or lost for good.
#pragma once

#include <functional>
#include <mutex>
#include <optional>

#include "absl/status/status.h"
#include "coordinator/engine/step_runner.h"

namespace plumbline {

class WatchedRunner final : public StepRunner {
 public:
  explicit WatchedRunner(StepRunner* inner) : inner_(inner) {}

  void Start(std::function<void(RunnerEvent)> listener) override;
  void Submit(StepPlan plan) override { inner_->Submit(std::move(plan)); }
  void Stop() override { inner_->Stop(); }

  // Thread-safe.
  bool was_ready() const;
  std::optional<absl::Status> fatal() const;

 private:
  StepRunner* inner_;
  mutable std::mutex mutex_;
  bool was_ready_ = false;
  std::optional<absl::Status> fatal_;
};

}  // namespace plumbline
