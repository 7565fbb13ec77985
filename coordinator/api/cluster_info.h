// ClusterInfo: what the API shows of the cluster. Implemented by the cluster's membership.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"

namespace plumbline {

struct RankInfo {
  int rank = 0;
  int stage = 0;
  int tp_index = 0;
  int first_layer = 0;
  int last_layer = 0;  // one past
  std::string host;
  int64_t pid = 0;
  std::string state;  // "absent", "loading", "ready", "lost"
  uint64_t steps = 0;
  int64_t weight_bytes = 0;
  int64_t rss_bytes = 0;
  int64_t planned_bytes = 0;  // weights, caches and activations
  double load_fraction = 0;
  std::string operation;  // what it was at when last heard of: "waiting in all-gather 418 of step 17"
};

// The end of an epoch that was not meant to end.
struct ClusterFault {
  struct Culprit {
    int rank = 0;
    std::string host;
    int64_t pid = 0;
    std::string operation;  // RankInfo's, at that moment
  };
  std::vector<Culprit> culprits;  // several where ranks cannot be told apart; empty where nobody is known
  std::string reason;
  absl::Time at;
};

struct ClusterSnapshot {
  uint64_t epoch = 0;
  int tp = 1;
  int pp = 1;
  std::string arithmetic;  // empty until one is agreed on
  bool ready = false;
  absl::Duration stalled_for;  // steps are under way and no rank has come further for so long; else zero
  std::vector<RankInfo> ranks;
  uint64_t num_faults = 0;
  std::optional<ClusterFault> last_fault;
};

class ClusterInfo {
 public:
  virtual ~ClusterInfo() = default;
  virtual ClusterSnapshot Snapshot() const = 0;  // thread-safe, does not block
};

}  // namespace plumbline
