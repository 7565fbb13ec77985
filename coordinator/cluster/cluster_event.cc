#include "coordinator/cluster/cluster_event.h"

namespace plumbline {

const char* NameOf(ClusterEvent::Kind kind) {
  using Kind = ClusterEvent::Kind;
  switch (kind) {
    case Kind::kWorkerRefused:
      return "worker_refused";
    case Kind::kWorkerJoined:
      return "worker_joined";
    case Kind::kWeightsLoaded:
      return "weights_loaded";
    case Kind::kRankFailed:
      return "rank_failed";
    case Kind::kWorkerLost:
      return "worker_lost";
    case Kind::kWorkerGivenUp:
      return "worker_given_up";
    case Kind::kEpochReady:
      return "epoch_ready";
    case Kind::kEpochLost:
      return "epoch_lost";
    case Kind::kClusterFailed:
      return "cluster_failed";
  }
  return "";
}

}  // namespace plumbline
