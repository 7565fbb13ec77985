// WorkerFleet: a coordinator's cluster with, when it runs on this host alone, the worker processes it starts.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "cli/model_flags.h"
#include "coordinator/cluster/cluster.h"
#include "coordinator/cluster/launcher.h"

namespace plumbline {

struct FleetOptions {
  std::string worker_listen = "127.0.0.1:0";
  std::string join_token;  // empty: a new one
  TlsIdentity tls;         // of the coordinator among its workers; not set: plain
  TlsFiles worker_tls;     // where the workers that are started read theirs
  bool launch = true;      // start every rank on this host
  std::string transport = "auto";  // between ranks: auto, shm or gloo
  // Both from any thread; may be empty.
  std::function<void(const ClusterEvent&)> on_event;
  std::function<void(int rank, const std::string& line)> on_worker_line;  // what a worker writes
};

class WorkerFleet {
 public:
  static absl::StatusOr<std::unique_ptr<WorkerFleet>> Start(const ModelFlags& flags, const NamedModel& model,
                                                            const FleetOptions& options);
  // Sends the workers home and waits for those it started.
  ~WorkerFleet();

  Cluster& cluster() { return *cluster_; }

 private:
  WorkerFleet() = default;

  std::unique_ptr<Launcher> launcher_;
  std::unique_ptr<Cluster> cluster_;
};

}  // namespace plumbline
