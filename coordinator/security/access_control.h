// AccessControl: who a client is and what it may use, for every interface of the server. Thread-safe.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/security/key_store.h"
#include "coordinator/security/quotas.h"

namespace plumbline {

// Where a request comes from.
struct Caller {
  int64_t key_id = 0;  // in the key store; 0: the operator, or anyone where no key is needed
  std::string name;    // the key's, for people; "operator"; empty where no key is needed
  QuotaLimits limits;
  int64_t priority = 0;
  int64_t share = 1;
  bool is_operator() const { return key_id == 0; }
};

enum class RefusalReason { kNoKey, kWrongKey, kKeyStoreFailed, kTokensPerMinute, kConcurrentRequests };
inline constexpr int kNumRefusalReasons = 5;
const char* NameOf(RefusalReason reason);  // for metrics, "no_key"

struct AccessOptions {
  std::string operator_key;             // has no limits; empty: there is none
  std::unique_ptr<KeyStore> key_store;  // null: there is none
  Quotas::Clock clock = absl::Now;
};

class AccessControl {
 public:
  // With neither key nor store everyone is the operator.
  explicit AccessControl(AccessOptions options);

  // authorization: the header's or metadata's value, "Bearer KEY". UNAUTHENTICATED: no key, a wrong or a revoked one;
  // UNAVAILABLE when keys cannot be looked up. No message holds what was presented.
  absl::StatusOr<Caller> Authenticate(std::string_view authorization);
  // The ticket of one request; RESOURCE_EXHAUSTED as Quotas says.
  absl::StatusOr<Quotas::Ticket> Admit(const Caller& caller);

  std::array<uint64_t, kNumRefusalReasons> num_refused() const;

 private:
  absl::Status Refuse(RefusalReason reason);

  const std::string operator_hash_;  // empty: there is no such key
  const std::unique_ptr<KeyStore> key_store_;
  Quotas quotas_;
  std::array<std::atomic<uint64_t>, 3> num_refused_ = {};  // the rest is counted by quotas_
};

}  // namespace plumbline
