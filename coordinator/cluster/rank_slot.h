// RankSlot: what the coordinator knows of one rank and of the worker that holds it.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "coordinator/api/cluster_info.h"
#include "coordinator/cluster/membership.h"
#include "coordinator/cluster/worker_link_server.h"

namespace plumbline {
namespace v1 {
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
  absl::Time last_heard;
  absl::Time last_progress;  // of loading and connecting

  // A worker has joined and holds nothing yet.
  void Occupy(std::shared_ptr<AttachedWorker> newcomer, const v1::Hello& hello, absl::Time now);
  // The worker is told what to hold.
  void BeginEpoch(absl::Time now);
  struct Patience {
    absl::Duration heartbeat;  // without a word
    absl::Duration load;       // without progress
    absl::Duration connect;    // until its peers are there
  };
  // DEADLINE_EXCEEDED says what the worker has not done. REQUIRES: worker.
  absl::Status CheckAlive(absl::Time now, const Patience& patience) const;
  // The worker has gone.
  void Vacate();
};

}  // namespace plumbline
