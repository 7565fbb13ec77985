#include "coordinator/cluster/ticker.h"

#include <utility>

namespace plumbline {

Ticker::Ticker(std::function<absl::Duration()> tick)
    : tick_(std::move(tick)), thread_([this] { Run(); }) {}

Ticker::~Ticker() {
  {
    std::lock_guard lock(mutex_);
    ends_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void Ticker::Wake() {
  {
    std::lock_guard lock(mutex_);
    woken_ = true;
  }
  changed_.notify_all();
}

void Ticker::Run() {
  std::unique_lock lock(mutex_);
  while (!ends_) {
    woken_ = false;
    lock.unlock();
    const absl::Duration wait = tick_();
    lock.lock();
    changed_.wait_for(lock, absl::ToChronoMicroseconds(wait) + std::chrono::microseconds(1),
                      [this] { return ends_ || woken_; });
  }
}

}  // namespace plumbline
