#include "coordinator/api/readiness.h"

#include <string>

#include "absl/strings/str_cat.h"

namespace plumbline {

absl::Status Readiness(const EngineStats& stats, absl::Duration stuck_after) {
  if (stats.draining) return absl::UnavailableError("the server is draining");
  if (!stats.ready) return absl::UnavailableError("the cluster is not ready");
  if (stats.since_progress > stuck_after) {
    return absl::UnavailableError(
        absl::StrCat("no step has finished for ", absl::FormatDuration(stats.since_progress)));
  }
  return absl::OkStatus();
}

}  // namespace plumbline
