// What the cluster_*_test programs start as processes of their own: a worker, or a coordinator that
// can be killed.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <thread>

#include "coordinator/cluster/cluster.h"
#include "worker/join_token.h"
#include "worker/rank_worker.h"

namespace plumbline {
namespace {

int RunWorker(RankWorkerOptions options) {
  const absl::Status status = RunRankWorker(std::move(options));
  if (status.ok()) return 0;
  std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
  return 1;
}

StepPlan OneStep(uint64_t epoch, uint64_t step) {
  return {.epoch = epoch,
          .step = step,
          .sequences = {
              {.tokens = {1, 2, 3}, .num_prompt_tokens = 3, .block_table = {0}, .state_slot = 0}}};
}

// Prints its workers' address, then "ready"; keeps them busy with one step after the other until it
// is killed.
int RunCoordinator(const std::string& model_dir, const std::string& join_token) {
  std::ifstream file(model_dir + "/config.json");
  auto cluster =
      Cluster::Create({.join_token = join_token,
                       .build = "test",
                       .mesh = {.tp = 2, .pp = 1},
                       .model_dir = model_dir,
                       .config_json = std::string(std::istreambuf_iterator<char>(file), {}),
                       .limits = {.max_tokens = 512, .max_sequences = 2, .max_step_tokens = 64}});
  if (!cluster.ok()) return 1;
  std::fprintf(stderr, "%s\n", (*cluster)->worker_address().c_str());
  (*cluster)->Start([&](RunnerEvent event) {
    if (const auto* ready = std::get_if<RunnerReady>(&event)) {
      std::fprintf(stderr, "ready\n");
      (*cluster)->Submit(OneStep(ready->epoch, 0));
    } else if (const auto* result = std::get_if<StepResult>(&event)) {
      (*cluster)->Submit(OneStep(result->epoch, result->step + 1));
    }
  });
  while (true) std::this_thread::sleep_for(std::chrono::hours(1));
}

}  // namespace
}  // namespace plumbline

int main(int argc, char** argv) {
  CLI::App app;
  plumbline::RankWorkerOptions options;
  options.build = "test";
  std::string token_file, coordinator_of;
  plumbline::TlsFiles tls;
  app.add_option("--coordinator", options.coordinator);
  app.add_option("--join-token-file", token_file);
  app.add_option("--cluster-cert", tls.certificate);
  app.add_option("--cluster-key", tls.key);
  app.add_option("--cluster-ca", tls.ca);
  app.add_option("--rank", options.wanted_rank);
  app.add_option("--threads", options.num_threads);
  app.add_option("--build", options.build);
  app.add_option("--memory-limit", options.memory_limit_bytes);
  app.add_option("--be-coordinator-of", coordinator_of);
  CLI11_PARSE(app, argc, argv);
  const absl::StatusOr<std::string> token = plumbline::ReadJoinToken(token_file);
  if (!token.ok()) return 2;
  if (!coordinator_of.empty()) return plumbline::RunCoordinator(coordinator_of, *token);
  // Not LoadMemberIdentity: what the coordinator refuses must get as far as that.
  const absl::StatusOr<plumbline::TlsIdentity> identity = plumbline::LoadTlsIdentity(tls);
  if (!identity.ok()) return 2;
  options.join_token = *token;
  options.tls = *identity;
  return plumbline::RunWorker(std::move(options));
}
