// Who calls a gRPC method, and what it may use. Internal to the gRPC services.
#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/security/access_control.h"

namespace grpc {
class ServerContextBase;
}

namespace plumbline {

// From the metadata "authorization". access: null lets everyone in.
absl::StatusOr<Caller> Authenticate(AccessControl* access, const grpc::ServerContextBase& context);
absl::StatusOr<Quotas::Ticket> Admit(AccessControl* access, const Caller& caller);
// Adds the trailing metadata "retry-after", in seconds, when the status is a refusal over quota.
void AddRetryAfter(const absl::Status& status, grpc::ServerContextBase& context);

}  // namespace plumbline
