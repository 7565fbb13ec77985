#include "cli/watched_runner.h"

namespace plumbline {

void WatchedRunner::Start(std::function<void(RunnerEvent)> listener) {
  inner_->Start([this, listener = std::move(listener)](RunnerEvent event) {
    {
      std::lock_guard lock(mutex_);
      if (std::holds_alternative<RunnerReady>(event)) was_ready_ = true;
      if (const auto* lost = std::get_if<RunnerLost>(&event); lost != nullptr && lost->fatal) fatal_ = lost->reason;
    }
    listener(std::move(event));
  });
}

bool WatchedRunner::was_ready() const {
  std::lock_guard lock(mutex_);
  return was_ready_;
}

std::optional<absl::Status> WatchedRunner::fatal() const {
  std::lock_guard lock(mutex_);
  return fatal_;
}

}  // namespace plumbline
