// What the coordinator says to workers (proto/cluster.proto, CoordinatorMessage). A message may go
// to several.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "coordinator/cluster/cluster.h"

namespace plumbline {
namespace v1 {
class CoordinatorMessage;
}

using CoordinatorMessagePtr = std::shared_ptr<const v1::CoordinatorMessage>;

struct EpochStart {
  uint64_t epoch = 0;
  int rank = 0;
  std::string arithmetic;
  std::string fingerprint;  // of the model's configuration
};
CoordinatorMessagePtr ConfigureMessage(const ClusterOptions& options, const EpochStart& start);
CoordinatorMessagePtr ConnectMessage(uint64_t epoch);
CoordinatorMessagePtr StepPlanMessage(std::string encoded_plan);
CoordinatorMessagePtr AbortMessage(uint64_t epoch, std::string reason);
CoordinatorMessagePtr ShutdownMessage(std::string reason);

}  // namespace plumbline
