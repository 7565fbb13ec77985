#include "coordinator/api/request_trace.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/time/clock.h"
#include "coordinator/api/request_tracker.h"

namespace plumbline {

RequestTrace::RequestTrace(RequestTracker* tracker, RequestRecord record, absl::Time arrival)
    : tracker_(tracker), id_(record.id), arrival_(arrival), record_(std::move(record)) {}

RequestTrace::~RequestTrace() {
  const bool is_http = record_.protocol == RequestProtocol::kHttp;
  End(is_http ? kClientGone : static_cast<int>(absl::StatusCode::kCancelled));
}

void RequestTrace::SetCaller(const Caller& caller) {
  const std::lock_guard lock(mutex_);
  record_.key_id = caller.key_id;
  record_.key = caller.name;
}

void RequestTrace::BeginGeneration(Generation generation) {
  {
    const std::lock_guard lock(mutex_);
    if (has_ended_) return;
    record_.model = std::move(generation.model);
    record_.prompt_tokens = generation.prompt_tokens;
    last_token_.assign(generation.num_choices, absl::InfinitePast());
    is_listed_ = true;
  }
  tracker_->List(this);
}

void RequestTrace::AddTokens(int64_t choice, int64_t num_tokens, absl::Time time) {
  if (num_tokens == 0) return;
  absl::Time last;
  {
    const std::lock_guard lock(mutex_);
    if (has_ended_) return;
    last = std::exchange(last_token_[choice], time);
    record_.generated_tokens += num_tokens;
    if (!record_.to_first_token) record_.to_first_token = time - arrival_;
  }
  if (last == absl::InfinitePast()) {
    tracker_->ObserveTimeToFirstToken(time - arrival_);
  } else {
    tracker_->ObserveTokens(time - last, num_tokens);
  }
}

void RequestTrace::AddCached(int64_t num_tokens) {
  const std::lock_guard lock(mutex_);
  record_.cached_tokens += num_tokens;
}

void RequestTrace::End(int status) {
  bool is_listed = false;
  {
    const std::lock_guard lock(mutex_);
    if (std::exchange(has_ended_, true)) return;
    record_.status = status;
    is_listed = is_listed_;
  }
  if (is_listed) tracker_->Unlist(this);
  tracker_->Finish(Record(absl::Now()));
}

RequestRecord RequestTrace::Record(absl::Time now) const {
  const std::lock_guard lock(mutex_);
  RequestRecord record = record_;
  record.age = now - arrival_;
  return record;
}

}  // namespace plumbline
