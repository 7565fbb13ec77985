#include "coordinator/api/readiness.h"

namespace plumbline {

absl::Status Readiness(const EngineStats& stats) {
  if (stats.draining) return absl::UnavailableError("the server is draining");
  if (!stats.ready) return absl::UnavailableError("the cluster is not ready");
  return absl::OkStatus();
}

}  // namespace plumbline
