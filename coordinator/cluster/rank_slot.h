// RankSlot: what the coordinator knows of one rank and of the worker that holds it.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "coordinator/api/cluster_info.h"
#include "coordinator/cluster/membership.h"
#include "coordinator/cluster/stall.h"
#include "coordinator/cluster/worker_link_server.h"
#include "parallel/mesh.h"
#include "parallel/planner.h"
#include "parallel/rank_progress.h"
#include "parallel/shard_plan.h"

namespace plumbline {
namespace v1 {
class Heartbeat;
class Hello;
}

WorkerIdentity IdentityOf(const v1::Hello& hello);

// Guarded by the cluster's lock.
struct RankSlot {
  std::shared_ptr<AttachedWorker> worker;  // null: absent
  RankInfo info;
  bool has_weights = false;
  bool loaded = false;     // in this epoch
  bool connected = false;  // in this epoch
  uint64_t epoch_steps = 0;
  RankProgress progress;  // in this epoch, as of the last heartbeat
  absl::Time last_heard;
  absl::Time last_progress;  // of loading and connecting

  // A worker has joined and holds nothing yet.
  void Occupy(std::shared_ptr<AttachedWorker> newcomer, const v1::Hello& hello, absl::Time now);
  // The worker is told what to hold.
  void BeginEpoch(absl::Time now);
  // Whether the rank has come further in this epoch since its last heartbeat.
  bool TakeHeartbeat(const v1::Heartbeat& heartbeat, uint64_t epoch);

  struct Patience {
    absl::Duration heartbeat;  // without a word
    absl::Duration load;       // without progress
    absl::Duration connect;    // until its peers are there
  };
  // DEADLINE_EXCEEDED says what the worker has not done. REQUIRES: worker.
  absl::Status CheckAlive(absl::Time now, const Patience& patience) const;
  // `num_steps`: sent in this epoch.
  StalledRank AsStalled(std::string name, uint64_t num_steps, absl::Time now) const;
  // REQUIRES: there is or was a worker.
  ClusterFault::Culprit AsCulprit() const;
  // The worker has gone.
  void Vacate();
};

// One per rank, all absent. `needs` by rank.
std::vector<RankSlot> MakeSlots(const Mesh& mesh, const ShardPlan& plan, const std::vector<RankBytes>& needs);

}  // namespace plumbline
