// Readiness by progress: a server is ready while the cluster is there, however long its queue or its steps. A step that
// stands still ends the cluster's epoch, and with it readiness.
#pragma once

#include "absl/status/status.h"
#include "coordinator/engine/engine.h"

namespace plumbline {

// OK, or UNAVAILABLE with the reason.
absl::Status Readiness(const EngineStats& stats);

}  // namespace plumbline
