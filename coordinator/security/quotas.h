// Quotas: how much each API key may use. Tokens flow into a key's bucket at its rate per minute and the bucket holds
// one minute's worth. A request takes its prompt's tokens when it begins and its generated tokens as they come; what it
// generates may leave the bucket in debt, and no request begins before that is paid. So over time a key gets its rate,
// whatever the sizes of its requests, and a request that has begun is never cut short.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace plumbline {

inline constexpr int64_t kMaxTokensPerMinute = 1'000'000'000;
inline constexpr int64_t kMaxConcurrentRequests = 1'000'000;

struct QuotaLimits {
  int64_t tokens_per_minute = 0;  // 0: no limit; at most kMaxTokensPerMinute
  int64_t max_concurrent = 0;     // requests; 0: no limit; at most kMaxConcurrentRequests
  friend bool operator==(const QuotaLimits&, const QuotaLimits&) = default;
};

enum class QuotaKind { kTokens, kRequests };

// What a RESOURCE_EXHAUSTED of Quotas says beside its message.
struct QuotaRefusal {
  QuotaKind kind = QuotaKind::kTokens;
  int64_t retry_after_seconds = 1;
};
// Nothing for the status of anyone else.
std::optional<QuotaRefusal> QuotaRefusalOf(const absl::Status& status);

// Thread-safe. Keeps a few bytes for every key that was ever admitted.
class Quotas {
  struct State;

 public:
  using Clock = std::function<absl::Time()>;

  // One request under way. Methods may be called from any thread, one at a time. A default one has no limits.
  class Ticket {
   public:
    Ticket() = default;
    Ticket(Ticket&& other) noexcept = default;
    Ticket& operator=(Ticket&& other) noexcept;
    ~Ticket() { Release(); }

    // Takes the prompt's tokens. RESOURCE_EXHAUSTED when the key has not so many now; a prompt of more than one
    // minute's worth needs a full bucket.
    absl::Status Reserve(int64_t num_tokens);
    // Takes generated tokens.
    void Charge(int64_t num_tokens);
    // Gives back what was reserved, and ends: the request was refused elsewhere.
    void Refund();
    // Ends the request; what was taken stays taken. Idempotent.
    void Release();

   private:
    friend class Quotas;
    Ticket(std::shared_ptr<State> state, int64_t key_id) : state_(std::move(state)), key_id_(key_id) {}

    std::shared_ptr<State> state_;  // may outlive the Quotas; null once released
    int64_t key_id_ = 0;
    int64_t num_reserved_ = 0;
  };

  explicit Quotas(Clock clock = absl::Now);

  // RESOURCE_EXHAUSTED when the key has as many requests under way as it may, or is in debt. The limits are those of
  // now: they may differ from call to call.
  absl::StatusOr<Ticket> Admit(int64_t key_id, const QuotaLimits& limits);

  std::array<uint64_t, 2> num_refused() const;  // by QuotaKind

 private:
  const std::shared_ptr<State> state_;
};

}  // namespace plumbline
