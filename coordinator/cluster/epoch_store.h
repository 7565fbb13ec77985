// EpochStore: where the ranks of the current epoch leave each other their addresses. Keys begin
// with "EPOCH/". Any thread.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace plumbline {

class EpochStore {
 public:
  // Drops all keys; those of other epochs are ABORTED from now on, waits for them included.
  void Begin(uint64_t epoch);

  // INVALID_ARGUMENT: a key without an epoch; RESOURCE_EXHAUSTED: more than an epoch can need.
  absl::Status Set(const std::string& key, const std::string& value);
  // DEADLINE_EXCEEDED names the key; CANCELLED when is_cancelled, asked several times a second,
  // says so.
  absl::StatusOr<std::string> Get(const std::string& key, absl::Duration timeout,
                                  const std::function<bool()>& is_cancelled);

 private:
  absl::Status CheckEpoch(const std::string& key) const;

  std::mutex mutex_;
  std::condition_variable changed_;
  uint64_t epoch_ = 0;
  std::map<std::string, std::string> values_;
};

}  // namespace plumbline
