// RequestTrace: one request from its arrival to its end. Made by RequestTracker, which outlives it. Thread-safe; calls
// after the end do nothing.
#pragma once

#include <cstdint>
#include <mutex>
#include <vector>

#include "absl/time/time.h"
#include "coordinator/api/request_record.h"
#include "coordinator/security/access_control.h"

namespace plumbline {

class RequestTracker;

class RequestTrace {
 public:
  static constexpr int kClientGone = 499;  // as nginx has it

  RequestTrace(RequestTracker* tracker, RequestRecord record, absl::Time arrival);
  ~RequestTrace();  // ends it with kClientGone, or gRPC's CANCELLED
  RequestTrace(const RequestTrace&) = delete;
  RequestTrace& operator=(const RequestTrace&) = delete;

  const std::string& id() const { return id_; }

  void SetCaller(const Caller& caller);
  struct Generation {
    std::string model;
    int64_t prompt_tokens = 0;
    int64_t num_choices = 1;
  };
  // From now on it is listed among the live ones. At most once, before anything can end it.
  void BeginGeneration(Generation generation);
  // `num_tokens` came for a choice at that time.
  void AddTokens(int64_t choice, int64_t num_tokens, absl::Time time);
  void AddCached(int64_t num_tokens);
  // Counts it and tells the log. The first call stands.
  void End(int status);

  RequestRecord Record(absl::Time now) const;

 private:
  RequestTracker* const tracker_;
  const std::string id_;
  const absl::Time arrival_;

  mutable std::mutex mutex_;
  RequestRecord record_;
  std::vector<absl::Time> last_token_;  // by choice
  bool is_listed_ = false;
  bool has_ended_ = false;
};

}  // namespace plumbline
