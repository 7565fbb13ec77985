#include "coordinator/api/fault_json.h"

#include <utility>

#include "nlohmann/json.hpp"

namespace plumbline {

nlohmann::ordered_json FaultJson(const ClusterFault& fault) {
  auto culprits = nlohmann::ordered_json::array();
  for (const ClusterFault::Culprit& culprit : fault.culprits) {
    culprits.push_back({{"rank", culprit.rank},
                        {"host", culprit.host},
                        {"pid", culprit.pid},
                        {"operation", culprit.operation}});
  }
  return {{"time_ms", absl::ToUnixMillis(fault.at)}, {"reason", fault.reason}, {"culprits", std::move(culprits)}};
}

}  // namespace plumbline
