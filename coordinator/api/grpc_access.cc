#include "coordinator/api/grpc_access.h"

#include <grpcpp/grpcpp.h>

#include <string>
#include <string_view>

namespace plumbline {

absl::StatusOr<Caller> Authenticate(AccessControl* access, const grpc::ServerContextBase& context) {
  if (access == nullptr) return Caller{};
  const auto given = context.client_metadata().find("authorization");
  if (given == context.client_metadata().end()) return access->Authenticate("");
  return access->Authenticate(std::string_view(given->second.data(), given->second.size()));
}

absl::StatusOr<Quotas::Ticket> Admit(AccessControl* access, const Caller& caller) {
  if (access == nullptr) return Quotas::Ticket();
  return access->Admit(caller);
}

void AddRetryAfter(const absl::Status& status, grpc::ServerContextBase& context) {
  if (const auto refusal = QuotaRefusalOf(status)) {
    context.AddTrailingMetadata("retry-after", std::to_string(refusal->retry_after_seconds));
  }
}

}  // namespace plumbline
