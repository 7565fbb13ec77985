#include "coordinator/cluster/epoch_store.h"

#include <algorithm>
#include <chrono>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "proto/status.h"

namespace plumbline {
namespace {

constexpr size_t kMaxKeyBytes = 256;
constexpr size_t kMaxValueBytes = 64 << 10;
constexpr size_t kMaxKeys = 4096;
constexpr absl::Duration kMaxWait = absl::Seconds(60);
constexpr std::chrono::milliseconds kCancelInterval(100);

}  // namespace

void EpochStore::Begin(uint64_t epoch) {
  std::lock_guard lock(mutex_);
  epoch_ = epoch;
  values_.clear();
  changed_.notify_all();
}

absl::Status EpochStore::CheckEpoch(const std::string& key) const {
  const size_t slash = key.find('/');
  uint64_t epoch = 0;
  if (slash == std::string::npos || key.size() > kMaxKeyBytes ||
      !absl::SimpleAtoi(key.substr(0, slash), &epoch)) {
    return absl::InvalidArgumentError(
        absl::StrCat("store key '", key.substr(0, kMaxKeyBytes), "' is not EPOCH/..."));
  }
  if (epoch != epoch_) {
    return absl::AbortedError(absl::StrCat("store key '", key, "': the epoch is ", epoch_));
  }
  return absl::OkStatus();
}

absl::Status EpochStore::Set(const std::string& key, const std::string& value) {
  std::lock_guard lock(mutex_);
  PL_RETURN_IF_ERROR(CheckEpoch(key));
  if (value.size() > kMaxValueBytes || values_.size() >= kMaxKeys) {
    return absl::ResourceExhaustedError(
        absl::StrCat("store key '", key, "': ", value.size(), " bytes, ", values_.size(),
                     " keys; limits are ", kMaxValueBytes, " and ", kMaxKeys));
  }
  values_[key] = value;
  changed_.notify_all();
  return absl::OkStatus();
}

absl::StatusOr<std::string> EpochStore::Get(const std::string& key, absl::Duration timeout,
                                            const std::function<bool()>& is_cancelled) {
  const auto deadline =
      std::chrono::steady_clock::now() +
      absl::ToChronoMilliseconds(std::clamp(timeout, absl::ZeroDuration(), kMaxWait));
  std::unique_lock lock(mutex_);
  while (true) {
    PL_RETURN_IF_ERROR(CheckEpoch(key));
    if (const auto it = values_.find(key); it != values_.end()) return it->second;
    const auto now = std::chrono::steady_clock::now();
    if (now >= deadline) {
      return absl::DeadlineExceededError(
          absl::StrCat("nobody set the key '", key, "' within ", absl::FormatDuration(timeout)));
    }
    if (is_cancelled()) return absl::CancelledError(absl::StrCat("store key '", key, "'"));
    changed_.wait_until(lock, std::min(deadline, now + kCancelInterval));
  }
}

}  // namespace plumbline
