#include "cli/worker_fleet.h"

#include <filesystem>

#include "coordinator/cluster/join_token.h"
#include "proto/status.h"
#include "worker/build_id.h"

namespace plumbline {

absl::StatusOr<std::unique_ptr<WorkerFleet>> WorkerFleet::Start(const ModelFlags& flags, const NamedModel& model,
                                                                const FleetOptions& options) {
  if (!options.launch && !flags.cache_dir.empty()) {
    return absl::InvalidArgumentError("--cache-dir: the workers hold the weights; give it to `plumbline worker`");
  }
  auto fleet = std::unique_ptr<WorkerFleet>(new WorkerFleet());
  WorkerFleet* self = fleet.get();
  const std::string token = options.join_token.empty() ? MakeJoinToken() : options.join_token;
  ClusterOptions cluster;
  cluster.worker_listen = options.worker_listen;
  cluster.join_token = token;
  cluster.tls = options.tls;
  cluster.build = BuildId();
  cluster.mesh = flags.mesh;
  cluster.model_dir = model.dir;
  cluster.config_json = model.config_json;
  cluster.num_layers = static_cast<int>(flags.layers);
  cluster.random_seed = model.random_seed;
  cluster.arithmetic = flags.arithmetic;
  cluster.compute_f32 = model.compute_dtype == DType::kF32 && model.config.dtype != DType::kF32;
  cluster.limits = LimitsFor(flags, model);
  cluster.num_threads = ThreadsPerRank(flags, options.launch ? flags.mesh.size() : 1);
  cluster.transport = options.transport;
  cluster.on_event = options.on_event;
  cluster.on_given_up = [self](int rank, int64_t pid) {
    if (self->launcher_ != nullptr) self->launcher_->Kill(rank, pid);
  };
  PL_ASSIGN_OR_RETURN(fleet->cluster_, Cluster::Create(std::move(cluster)));
  if (!options.launch) return fleet;
  LauncherOptions launcher;
  launcher.command = WorkerCommand(fleet->cluster_->worker_address(), ThreadsPerRank(flags, flags.mesh.size()),
                                   options.worker_tls);
  if (!flags.cache_dir.empty()) {
    // Workers have another working directory.
    const std::string cache_dir = std::filesystem::absolute(flags.cache_dir).string();
    launcher.command.insert(launcher.command.end(), {"--cache-dir", cache_dir});
  }
  launcher.join_token = token;
  for (int rank = 0; rank < flags.mesh.size(); ++rank) launcher.ranks.push_back(rank);
  launcher.on_line = options.on_worker_line;
  launcher.on_give_up = [self](absl::Status reason) { self->cluster_->Fail(std::move(reason)); };
  PL_ASSIGN_OR_RETURN(fleet->launcher_, Launcher::Start(std::move(launcher)));
  return fleet;
}

WorkerFleet::~WorkerFleet() {
  if (cluster_ != nullptr) cluster_->Stop();
  if (launcher_ != nullptr) launcher_->Stop(absl::Seconds(3));
}

}  // namespace plumbline
