// ClusterInfo: what the API shows of the cluster. Implemented by the cluster's membership.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

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
};

struct ClusterSnapshot {
  uint64_t epoch = 0;
  int tp = 1;
  int pp = 1;
  std::string arithmetic;  // empty until one is agreed on
  bool ready = false;
  std::vector<RankInfo> ranks;
};

class ClusterInfo {
 public:
  virtual ~ClusterInfo() = default;
  virtual ClusterSnapshot Snapshot() const = 0;  // thread-safe, does not block
};

}  // namespace plumbline
