// absl::Status <-> grpc::Status by code and message, and the macros that pass a Status up.
#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace grpc {
class Status;
}

namespace plumbline {

grpc::Status ToGrpc(const absl::Status& status);
absl::Status FromGrpc(const grpc::Status& status);

}  // namespace plumbline

#define PL_RETURN_IF_ERROR(expression)                            \
  do {                                                            \
    if (absl::Status pl_status = (expression); !pl_status.ok()) { \
      return pl_status;                                           \
    }                                                             \
  } while (false)

#define PL_CONCAT_INNER(a, b) a##b
#define PL_CONCAT(a, b) PL_CONCAT_INNER(a, b)
#define PL_ASSIGN_OR_RETURN(target, expression) \
  PL_ASSIGN_OR_RETURN_IMPL(PL_CONCAT(pl_statusor_, __LINE__), target, expression)
#define PL_ASSIGN_OR_RETURN_IMPL(statusor, target, expression) \
  auto statusor = (expression);                                \
  if (!statusor.ok()) return std::move(statusor).status();     \
  target = *std::move(statusor)
