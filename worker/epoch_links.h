// EpochLinks: this rank's two groups in one epoch: the ranks of its stage, and the ranks with its
// tp index over all stages.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "parallel/communicator.h"
#include "parallel/mesh.h"
#include "parallel/rank_progress.h"
#include "worker/model/stage.h"
#include "worker/worker_link.h"

namespace plumbline {

class EpochLinks {
 public:
  struct Options {
    uint64_t epoch = 0;
    Mesh mesh;
    int rank = 0;
    std::string bind_address;
    absl::Duration call_timeout;
    ProcessTransport transport = ProcessTransport::kAuto;
  };
  EpochLinks(Options options, std::unique_ptr<WorkerLink::Store> store);

  uint64_t epoch() const { return options_.epoch; }

  // Returns when both groups stand, or the failure that names the peer. The thread that drives the
  // rank.
  absl::Status Connect();
  // REQUIRES: Connect succeeded. Valid as long as this object.
  StageLinks links() const { return {.tp = tp_.get(), .pp = pp_.get()}; }
  // What the calls on links() and the steps they belong to are noted in.
  ProgressRecord& progress() { return progress_; }
  // Ends Connect or a collective under way, and all later ones, with `reason`, at once; then takes
  // its time, a fraction of a second, to tell the peers. So does the destructor when nobody did.
  // Any thread, idempotent.
  void Interrupt(const absl::Status& reason);

 private:
  struct Group {
    std::string name;
    int rank = 0;
    int size = 1;
  };
  absl::Status ConnectGroup(const Group& group, std::unique_ptr<Communicator>& member);

  const Options options_;
  const std::unique_ptr<WorkerLink::Store> store_;
  ProgressRecord progress_;
  std::mutex mutex_;
  absl::Status interrupted_;
  std::unique_ptr<Communicator> tp_, pp_;
};

}  // namespace plumbline
