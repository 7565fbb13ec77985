// Ticker: a thread that calls a function again and again, each time when the function said.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

#include "absl/time/time.h"

namespace plumbline {

class Ticker {
 public:
  // tick returns how long to wait until the next call; the first comes at once.
  explicit Ticker(std::function<absl::Duration()> tick);
  // Returns after the last call.
  ~Ticker();
  Ticker(const Ticker&) = delete;
  Ticker& operator=(const Ticker&) = delete;

  // The next call comes at once. Any thread; does not block.
  void Wake();

 private:
  void Run();

  const std::function<absl::Duration()> tick_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool woken_ = false;
  bool ends_ = false;
  std::thread thread_;
};

}  // namespace plumbline
