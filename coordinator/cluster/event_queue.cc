#include "coordinator/cluster/event_queue.h"

#include <utility>

namespace plumbline {

void EventQueue::Post(Call call) {
  std::lock_guard lock(mutex_);
  calls_.push_back(std::move(call));
}

void EventQueue::Deliver() {
  std::lock_guard delivery(delivery_mutex_);
  if (state_ == State::kNotYet) return;
  std::deque<Call> calls;
  {
    std::lock_guard lock(mutex_);
    calls.swap(calls_);
  }
  if (state_ == State::kClosed) return;
  for (Call& call : calls) call();
}

void EventQueue::Open() {
  std::lock_guard delivery(delivery_mutex_);
  if (state_ == State::kNotYet) state_ = State::kOpen;
}

void EventQueue::Close() {
  std::lock_guard delivery(delivery_mutex_);
  state_ = State::kClosed;
}

}  // namespace plumbline
