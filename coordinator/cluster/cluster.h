// Cluster: the worker processes that hold one model, as one StepRunner. It gives every worker that
// joins a rank, has all of them load and connect, and runs steps on them. A worker that is lost
// ends the epoch: the others keep their weights and wait for a replacement, with which the next
// epoch begins.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "coordinator/api/cluster_info.h"
#include "coordinator/cluster/cluster_event.h"
#include "coordinator/engine/step_runner.h"
#include "parallel/mesh.h"
#include "parallel/planner.h"
#include "proto/tls_identity.h"

namespace plumbline {

struct ClusterOptions {
  std::string worker_listen = "127.0.0.1:0";  // where workers dial in; port 0: any
  std::string join_token;
  TlsIdentity tls;  // of the coordinator among its workers (LoadMemberIdentity); not set: plain
  std::string build;

  Mesh mesh;
  std::string model_dir;                // read by the workers
  std::string config_json;              // the model's config.json
  int num_layers = 0;                   // 0: all
  std::optional<uint64_t> random_seed;  // weights made up instead of read
  std::string arithmetic;               // empty: the fastest that all workers have
  bool compute_f32 = false;
  CacheLimits limits;
  int num_threads = 1;             // of each rank
  std::string transport = "auto";  // between ranks: auto, shm or gloo

  absl::Duration join_timeout = absl::Minutes(10);     // until the first epoch has all its workers
  absl::Duration rejoin_timeout = absl::Seconds(120);  // until a lost one is replaced
  absl::Duration load_timeout = absl::Seconds(60);     // of a rank without progress
  absl::Duration heartbeat_timeout = absl::Seconds(4);
  absl::Duration step_timeout = absl::Seconds(120);    // of any step; a shorter one follows from those that are done,
  absl::Duration late_step_least = absl::Seconds(4);   // but none shorter than this
  int max_fruitless_epochs =
      10;  // in a row that end without a step done, before the cluster gives up

  // A worker was given up though it may still be alive: whoever started it should end it. From a
  // thread of the cluster; must not block.
  std::function<void(int rank, int64_t pid)> on_given_up;
  std::function<void(const ClusterEvent&)> on_event;  // as on_given_up
};

class Cluster : public StepRunner, public ClusterInfo {
 public:
  // Checks the configuration and begins to listen; the events that Start delivers may begin at
  // once. INVALID_ARGUMENT: the model or the mesh; UNAVAILABLE: the address.
  static absl::StatusOr<std::unique_ptr<Cluster>> Create(ClusterOptions options);
  // Sends the workers home.
  ~Cluster() override = default;

  virtual const std::string& worker_address() const = 0;  // HOST:PORT
  // Nothing can come of this cluster: workers are sent home, a fatal RunnerLost is delivered. Any
  // thread.
  virtual void Fail(absl::Status reason) = 0;
};

}  // namespace plumbline
