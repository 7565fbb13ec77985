#include <condition_variable>
#include <map>
#include <mutex>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "parallel/communicator.h"

namespace plumbline {
namespace {

class InProcessStore final : public RendezvousStore {
 public:
  absl::Status Set(const std::string& key, const std::string& value) override {
    std::lock_guard lock(mutex_);
    values_[key] = value;
    changed_.notify_all();
    return absl::OkStatus();
  }

  absl::StatusOr<std::string> Get(const std::string& key, absl::Duration timeout) override {
    // A day stands for "for ever": adding an infinite duration to a clock would overflow.
    const auto wait = absl::ToChronoMilliseconds(std::min(timeout, absl::Hours(24)));
    std::unique_lock lock(mutex_);
    if (!changed_.wait_for(lock, wait, [&] { return values_.contains(key); })) {
      return absl::DeadlineExceededError(
          absl::StrCat("nobody set the key '", key, "' within ", absl::FormatDuration(timeout)));
    }
    return values_[key];
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, std::string> values_;
};

}  // namespace

std::unique_ptr<RendezvousStore> MakeInProcessStore() { return std::make_unique<InProcessStore>(); }

}  // namespace plumbline
