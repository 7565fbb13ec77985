// ClusterEvent: what happens to a cluster, for people (text) and for machines (the rest).
#pragma once

#include <cstdint>
#include <string>

namespace plumbline {

struct ClusterEvent {
  enum class Kind {
    kWorkerRefused,
    kWorkerJoined,
    kWeightsLoaded,
    kRankFailed,
    kWorkerLost,     // it went
    kWorkerGivenUp,  // dropped: it is silent, keeps the others waiting or talks nonsense
    kEpochReady,
    kEpochLost,
    kClusterFailed,
  };
  Kind kind = Kind::kWorkerJoined;
  std::string text;    // one line
  uint64_t epoch = 0;  // the latest; 0: there was none yet
  int rank = -1;       // -1: of no rank
  std::string host;    // the rank's
  int64_t pid = 0;
};

const char* NameOf(ClusterEvent::Kind kind);  // for logs, "worker_joined"

}  // namespace plumbline
