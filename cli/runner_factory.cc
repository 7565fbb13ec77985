#include "cli/runner_factory.h"

#include <cstdio>

#include "absl/strings/str_cat.h"
#include "cli/local_runner.h"
#include "cli/progress_bar.h"
#include "cli/worker_fleet.h"
#include "kernels/backend.h"
#include "proto/status.h"
#include "worker/backend_factory.h"
#include "worker/local_ranks.h"

namespace plumbline {
namespace {

// The fleet's cluster, kept alive as long as it runs steps.
class FleetRunner final : public StepRunner {
 public:
  explicit FleetRunner(std::shared_ptr<WorkerFleet> fleet) : fleet_(std::move(fleet)) {}
  void Start(std::function<void(RunnerEvent)> listener) override { fleet_->cluster().Start(std::move(listener)); }
  void Submit(StepPlan plan) override { fleet_->cluster().Submit(std::move(plan)); }
  void Stop() override { fleet_->cluster().Stop(); }

 private:
  std::shared_ptr<WorkerFleet> fleet_;
};

absl::StatusOr<StartedRunner> StartThreads(const ModelFlags& flags, const NamedModel& model,
                                           LocalRanks::Options::Transport transport, OpProfile* profile) {
  StartedRunner started = {.runner = nullptr,
                           .arithmetic = flags.arithmetic.empty() ? CpuArithmetics().front() : flags.arithmetic,
                           .limits = LimitsFor(flags, model),
                           .memory = {}};
  PL_ASSIGN_OR_RETURN(ShardPlan plan, ShardPlan::Make(model.config, flags.mesh));
  int64_t total = 0;
  for (const RankBytes& rank : PlanMemory(model.config, plan, started.limits, model.compute_dtype)) {
    total += rank.checkpoint_bytes;
  }
  ProgressBar progress("loading", flags.mesh.size(), total);
  const BackendChoice choice = {.arithmetic = started.arithmetic,
                                .num_threads = ThreadsPerRank(flags, flags.mesh.size())};
  PL_ASSIGN_OR_RETURN(auto ranks,
                      LocalRanks::Start({.config = model.config,
                                         .mesh = flags.mesh,
                                         .limits = started.limits,
                                         .compute_dtype = model.compute_dtype,
                                         .make_backend = [choice, profile]() -> absl::StatusOr<Backend> {
                                           PL_ASSIGN_OR_RETURN(Backend backend, MakeBackend(choice));
                                           if (profile) backend.ops = MakeProfiledOps(std::move(backend.ops), *profile);
                                           return backend;
                                         },
                                         .transport = transport,
                                         .open_weights = WeightOpener(model),
                                         .on_progress = [&progress](int rank, int64_t bytes) { progress.Set(rank, bytes); },
                                         .cache_dir = flags.cache_dir,
                                         .on_line =
                                             [](int rank, const std::string& line) {
                                               std::fprintf(stderr, "[rank %d] %s\n", rank, line.c_str());
                                             }}));
  std::vector<RankMemory> memory(flags.mesh.size());
  for (int r = 0; r < flags.mesh.size(); ++r) memory[r].weight_bytes = ranks->weight_bytes(r);
  started.memory = [memory] { return memory; };
  started.runner = MakeLocalRunner(std::move(ranks), flags.mesh, started.limits);
  return started;
}

absl::StatusOr<StartedRunner> StartProcesses(const ModelFlags& flags, const NamedModel& model,
                                             const std::string& transport) {
  PL_ASSIGN_OR_RETURN(
      std::unique_ptr<WorkerFleet> started_fleet,
      WorkerFleet::Start(flags, model,
                         {.join_token = "",
                          .transport = transport,
                          .on_event = [](const ClusterEvent& event) { std::fprintf(stderr, "%s\n", event.text.c_str()); },
                          .on_worker_line =
                              [](int rank, const std::string& line) {
                                std::fprintf(stderr, "[rank %d] %s\n", rank, line.c_str());
                              }}));
  const std::shared_ptr<WorkerFleet> fleet = std::move(started_fleet);
  StartedRunner started = {.runner = nullptr,
                           .arithmetic = flags.arithmetic,
                           .limits = LimitsFor(flags, model),
                           .memory = {}};
  started.memory = [fleet] {
    std::vector<RankMemory> memory;
    for (const RankInfo& rank : fleet->cluster().Snapshot().ranks) memory.push_back({rank.weight_bytes, rank.rss_bytes});
    return memory;
  };
  if (started.arithmetic.empty()) started.arithmetic = CpuArithmetics().front();  // all ranks are on this host
  started.runner = std::make_unique<FleetRunner>(fleet);
  return started;
}

}  // namespace

std::vector<std::string> RunnerTransports() { return {"threads", "shm", "gloo", "processes", "processes-gloo"}; }

absl::StatusOr<StartedRunner> StartRunner(const ModelFlags& flags, const NamedModel& model, const std::string& transport,
                                          OpProfile* profile) {
  if (profile && (flags.mesh.size() > 1 || transport != "threads")) {
    return absl::InvalidArgumentError("--ops: only with one rank in this process: --tp 1 --pp 1 --transport threads");
  }
  PL_RETURN_IF_ERROR(CheckHostMemory(model, flags.mesh, LimitsFor(flags, model)));
  if (transport == "processes") return StartProcesses(flags, model, "auto");
  if (transport == "processes-gloo") return StartProcesses(flags, model, "gloo");
  using Transport = LocalRanks::Options::Transport;
  return StartThreads(flags, model,
                      transport == "gloo"  ? Transport::kGloo
                      : transport == "shm" ? Transport::kShm
                                           : Transport::kThreads,
                      profile);
}

}  // namespace plumbline
