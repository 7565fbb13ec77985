// EventQueue: calls that a state machine makes out of its own lock, one after the other, in the
// order they were posted.
#pragma once

#include <deque>
#include <functional>
#include <mutex>

namespace plumbline {

class EventQueue {
 public:
  using Call = std::function<void()>;

  // From within the state machine's lock. Calls before Open wait for it; those after Close go
  // nowhere.
  void Post(Call call);
  // Makes the calls that were posted. Out of the state machine's lock; by whoever posted, on its
  // thread. REQUIRES: not from within a call.
  void Deliver();

  void Open();
  // No call is under way or will be made when it returns.
  void Close();

 private:
  enum class State { kNotYet, kOpen, kClosed };

  std::mutex delivery_mutex_;  // held while calls are made; before mutex_
  State state_ = State::kNotYet;
  std::mutex mutex_;
  std::deque<Call> calls_;
};

}  // namespace plumbline
