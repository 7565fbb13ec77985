#include "coordinator/security/access_control.h"

#include <spdlog/spdlog.h>

#include <utility>

#include "coordinator/security/api_key.h"

namespace plumbline {

const char* NameOf(RefusalReason reason) {
  switch (reason) {
    case RefusalReason::kNoKey:
      return "no_key";
    case RefusalReason::kWrongKey:
      return "wrong_key";
    case RefusalReason::kKeyStoreFailed:
      return "key_store_failed";
    case RefusalReason::kTokensPerMinute:
      return "tokens_per_minute";
    case RefusalReason::kConcurrentRequests:
      return "concurrent_requests";
  }
  return "";
}

AccessControl::AccessControl(AccessOptions options)
    : operator_hash_(options.operator_key.empty() ? "" : HashApiKey(options.operator_key)),
      key_store_(std::move(options.key_store)),
      quotas_(std::move(options.clock)) {}

absl::StatusOr<Caller> AccessControl::Authenticate(std::string_view authorization) {
  if (operator_hash_.empty() && key_store_ == nullptr) return Caller{};
  const std::string_view key = BearerKey(authorization);
  if (key.empty()) return Refuse(RefusalReason::kNoKey);
  if (!operator_hash_.empty() && SameHash(HashApiKey(key), operator_hash_)) return Caller{.name = "operator"};
  if (key_store_ == nullptr) return Refuse(RefusalReason::kWrongKey);
  const auto found = key_store_->Find(key);
  if (!found.ok()) {
    spdlog::error("API keys: {}", std::string(found.status().message()));
    return Refuse(RefusalReason::kKeyStoreFailed);
  }
  if (!*found) return Refuse(RefusalReason::kWrongKey);
  const KeyRecord& record = **found;
  return Caller{.key_id = record.id,
                .name = record.settings.name,
                .limits = record.settings.limits,
                .priority = record.settings.priority,
                .share = record.settings.share};
}

absl::StatusOr<Quotas::Ticket> AccessControl::Admit(const Caller& caller) {
  if (caller.is_operator()) return Quotas::Ticket();
  return quotas_.Admit(caller.key_id, caller.limits);
}

absl::Status AccessControl::Refuse(RefusalReason reason) {
  ++num_refused_[static_cast<size_t>(reason)];
  switch (reason) {
    case RefusalReason::kNoKey:
      return absl::UnauthenticatedError("an API key is needed; send it as 'Authorization: Bearer KEY'");
    case RefusalReason::kWrongKey:
      return absl::UnauthenticatedError("the API key is wrong or revoked");
    default:
      return absl::UnavailableError("API keys cannot be looked up now");
  }
}

std::array<uint64_t, kNumRefusalReasons> AccessControl::num_refused() const {
  const auto over_quota = quotas_.num_refused();
  return {num_refused_[0], num_refused_[1], num_refused_[2], over_quota[0], over_quota[1]};
}

}  // namespace plumbline
