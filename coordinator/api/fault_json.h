// FaultJson: the last fault of a cluster, as /health and /status tell it.
#pragma once

#include "coordinator/api/cluster_info.h"
#include "nlohmann/json_fwd.hpp"

namespace plumbline {

// {"time_ms", "reason", "culprits": [{"rank", "host", "pid", "operation"}]}.
nlohmann::ordered_json FaultJson(const ClusterFault& fault);

}  // namespace plumbline
