// plumbline worker: holds one rank of a coordinator's model.
#include <CLI/CLI.hpp>
#include <memory>

#include "cli/command.h"
#include "cli/model_flags.h"
#include "cli/tls_flags.h"
#include "proto/status.h"
#include "worker/build_id.h"
#include "worker/join_token.h"
#include "worker/rank_worker.h"

namespace plumbline {
namespace {

struct WorkerFlags {
  RankWorkerOptions worker;
  std::string join_token_file;
  TlsFiles cluster_tls;
  double memory_gib = 0;
};

absl::Status RunWorker(WorkerFlags flags) {
  PL_ASSIGN_OR_RETURN(flags.worker.join_token, ReadJoinToken(flags.join_token_file));
  PL_ASSIGN_OR_RETURN(flags.worker.tls, LoadMemberIdentity(flags.cluster_tls));
  flags.worker.build = BuildId();
  flags.worker.memory_limit_bytes = static_cast<int64_t>(flags.memory_gib * (1 << 30));
  return RunRankWorker(std::move(flags.worker));
}

}  // namespace

void AddWorker(CLI::App& app, CommandMain& chosen) {
  auto flags = std::make_shared<WorkerFlags>();
  CLI::App* command = app.add_subcommand("worker", "hold one rank of a coordinator's model");
  command->add_option("--coordinator", flags->worker.coordinator, "HOST:PORT of the coordinator's worker link")->required();
  command->add_option("--join-token-file", flags->join_token_file, "file with the cluster's secret; - is standard input")
      ->required();
  AddClusterTlsFlags(*command, flags->cluster_tls);
  command->add_option("--rank", flags->worker.wanted_rank, "rank to hold; default: any that is free")
      ->check(CLI::Range(0, 1023));
  command->add_option("--threads", flags->worker.num_threads, "threads; 0: as the coordinator says")
      ->check(CLI::Range(0, 1024));
  command->add_option("--bind", flags->worker.bind_address, "address of this host that the other workers reach");
  command->add_option("--memory-gib", flags->memory_gib, "memory this worker may use; default: what is free")
      ->check(CLI::NonNegativeNumber);
  command->add_option("--model", flags->worker.model_dir, "the checkpoint on this host; default: the coordinator's path");
  AddCacheFlag(*command, flags->worker.cache_dir);
  command->footer("Example: plumbline worker --coordinator 10.0.0.1:50050 --join-token-file join.token");
  command->callback([flags, &chosen] { chosen = [flags] { return RunWorker(*flags); }; });
}

}  // namespace plumbline
