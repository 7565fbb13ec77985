#include "coordinator/security/quotas.h"

#include <algorithm>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace plumbline {
namespace {

constexpr char kTokensPayload[] = "plumbline/quota-tokens";
constexpr char kRequestsPayload[] = "plumbline/quota-requests";

// A token is this many parts, so that a rate of one token per minute is one part per millisecond: no rounding.
constexpr int64_t kParts = 60'000;

absl::Status OverQuota(QuotaKind kind, int64_t retry_after_seconds, const std::string& message) {
  absl::Status status = absl::ResourceExhaustedError(
      absl::StrCat("rate limit reached: this key has ", message, "; try again in ", retry_after_seconds, " s"));
  status.SetPayload(kind == QuotaKind::kTokens ? kTokensPayload : kRequestsPayload,
                    absl::Cord(absl::StrCat(retry_after_seconds)));
  return status;
}

// Of one key.
struct Bucket {
  int64_t tokens_per_minute = 0;
  int64_t level = 0;  // parts; negative: debt
  absl::Time filled_at;
  int64_t num_running = 0;

  int64_t capacity() const { return tokens_per_minute * kParts; }

  void Fill(absl::Time now) {
    if (tokens_per_minute == 0) return;
    if (now < filled_at) filled_at = now;  // the clock was set back
    const int64_t elapsed_ms = absl::ToInt64Milliseconds(now - filled_at);
    filled_at += absl::Milliseconds(elapsed_ms);
    const int64_t missing = capacity() - level;
    // Compared by division: the product may not fit.
    level = elapsed_ms > missing / tokens_per_minute ? capacity() : level + elapsed_ms * tokens_per_minute;
  }

  void SetRate(int64_t rate, absl::Time now) {
    if (rate == tokens_per_minute) return;
    const bool is_first = tokens_per_minute == 0;
    tokens_per_minute = rate;
    level = is_first ? capacity() : std::min(level, capacity());
    if (is_first) filled_at = now;
  }

  // Until `parts` are there, rounded up.
  int64_t SecondsUntil(int64_t parts) const {
    const int64_t ms = (parts - level + tokens_per_minute - 1) / tokens_per_minute;
    return std::max<int64_t>(1, (ms + 999) / 1000);
  }
};

}  // namespace

struct Quotas::State {
  explicit State(Clock clock) : clock(std::move(clock)) {}

  // With the lock held.
  absl::Status Refuse(QuotaKind kind, int64_t retry_after_seconds, const std::string& message) {
    ++num_refused[static_cast<size_t>(kind)];
    return OverQuota(kind, retry_after_seconds, message);
  }
  absl::Status RefuseTokens(const Bucket& bucket, int64_t parts) {
    return Refuse(QuotaKind::kTokens, bucket.SecondsUntil(parts),
                  absl::StrCat("a limit of ", bucket.tokens_per_minute, " tokens per minute"));
  }

  const Clock clock;
  std::mutex mutex;
  std::unordered_map<int64_t, Bucket> buckets;
  std::array<uint64_t, 2> num_refused = {};
};

std::optional<QuotaRefusal> QuotaRefusalOf(const absl::Status& status) {
  for (const QuotaKind kind : {QuotaKind::kTokens, QuotaKind::kRequests}) {
    const auto payload = status.GetPayload(kind == QuotaKind::kTokens ? kTokensPayload : kRequestsPayload);
    if (!payload) continue;
    QuotaRefusal refusal{.kind = kind};
    if (!absl::SimpleAtoi(std::string(*payload), &refusal.retry_after_seconds)) continue;
    return refusal;
  }
  return std::nullopt;
}

Quotas::Quotas(Clock clock) : state_(std::make_shared<State>(std::move(clock))) {}

absl::StatusOr<Quotas::Ticket> Quotas::Admit(int64_t key_id, const QuotaLimits& limits) {
  const std::lock_guard lock(state_->mutex);
  const absl::Time now = state_->clock();
  Bucket& bucket = state_->buckets[key_id];
  bucket.Fill(now);
  bucket.SetRate(limits.tokens_per_minute, now);
  if (limits.max_concurrent > 0 && bucket.num_running >= limits.max_concurrent) {
    return state_->Refuse(QuotaKind::kRequests, 1,
                          absl::StrCat("a limit of ", limits.max_concurrent, " concurrent requests"));
  }
  if (limits.tokens_per_minute > 0 && bucket.level < kParts) return state_->RefuseTokens(bucket, kParts);
  ++bucket.num_running;
  return Ticket(state_, key_id);
}

std::array<uint64_t, 2> Quotas::num_refused() const {
  const std::lock_guard lock(state_->mutex);
  return state_->num_refused;
}

Quotas::Ticket& Quotas::Ticket::operator=(Ticket&& other) noexcept {
  if (this == &other) return *this;
  Release();
  state_ = std::move(other.state_);
  key_id_ = other.key_id_;
  num_reserved_ = other.num_reserved_;
  return *this;
}

absl::Status Quotas::Ticket::Reserve(int64_t num_tokens) {
  if (state_ == nullptr) return absl::OkStatus();
  const std::lock_guard lock(state_->mutex);
  Bucket& bucket = state_->buckets[key_id_];
  if (bucket.tokens_per_minute == 0) return absl::OkStatus();
  bucket.Fill(state_->clock());
  const int64_t needed = std::min(num_tokens, bucket.tokens_per_minute) * kParts;
  if (bucket.level < needed) return state_->RefuseTokens(bucket, needed);
  bucket.level -= num_tokens * kParts;
  num_reserved_ += num_tokens;
  return absl::OkStatus();
}

void Quotas::Ticket::Charge(int64_t num_tokens) {
  if (state_ == nullptr) return;
  const std::lock_guard lock(state_->mutex);
  Bucket& bucket = state_->buckets[key_id_];
  if (bucket.tokens_per_minute == 0) return;
  bucket.Fill(state_->clock());  // first: what flowed over until now does not pay for these
  bucket.level -= num_tokens * kParts;
}

void Quotas::Ticket::Refund() {
  Charge(-num_reserved_);
  Release();
}

void Quotas::Ticket::Release() {
  const std::shared_ptr<State> state = std::exchange(state_, nullptr);
  if (state == nullptr) return;
  const std::lock_guard lock(state->mutex);
  --state->buckets[key_id_].num_running;
}

}  // namespace plumbline
