// Readiness by progress: a server is ready while its steps finish, however long its queue, and is
// not as soon as one step takes longer than any step should.
#pragma once

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "coordinator/engine/engine.h"

namespace plumbline {

// OK, or UNAVAILABLE with the reason.
absl::Status Readiness(const EngineStats& stats, absl::Duration stuck_after);

}  // namespace plumbline
