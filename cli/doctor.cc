// plumbline doctor: what this host can do, and with --exactness the proof on a model that every shape gives the same bits.
#include <sys/statvfs.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <memory>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cli/command.h"
#include "cli/model_flags.h"
#include "kernels/backend.h"
#include "proto/status.h"
#include "worker/host_facts.h"
#include "worker/backend_factory.h"
#include "worker/exactness.h"

namespace plumbline {
namespace {

struct DoctorFlags {
  ModelFlags model;
  bool exactness = false;
};

std::string ProcessorName() {
  std::ifstream file("/proc/cpuinfo");
  std::string line;
  while (std::getline(file, line)) {
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  }
  return "unknown";
}

void PrintHost() {
  constexpr double kGiB = 1 << 30;
  std::printf("processor    %s, %u threads\n", ProcessorName().c_str(), std::thread::hardware_concurrency());
  std::printf("arithmetics  %s\n", absl::StrJoin(CpuArithmetics(), ", ").c_str());
  std::printf("memory       %.1f GiB free\n", static_cast<double>(AvailableMemoryBytes()) / kGiB);
  struct statvfs disk;
  if (statvfs(".", &disk) == 0) {
    std::printf("disk here    %.1f GiB free\n",
                static_cast<double>(disk.f_bavail) * static_cast<double>(disk.f_frsize) / kGiB);
  }
  std::printf("GPUs         this build has no CUDA backend\n");
}

const char* NameOf(LocalRanks::Options::Transport transport) {
  using Transport = LocalRanks::Options::Transport;
  return transport == Transport::kThreads ? "threads" : transport == Transport::kGloo ? "gloo" : "shm";
}

absl::Status CheckModel(const ModelFlags& flags) {
  PL_ASSIGN_OR_RETURN(NamedModel model, OpenNamedModel(flags));
  const BackendChoice choice = {.arithmetic = flags.arithmetic, .num_threads = 1};
  ExactnessOptions options;
  options.ranks.config = model.config;
  options.ranks.compute_dtype = model.compute_dtype;
  options.ranks.make_backend = [choice] { return MakeBackend(choice); };
  options.ranks.open_weights = WeightOpener(model);
  options.ranks.cache_dir = flags.cache_dir;
  for (const int tp : LegalTpSizes(model.config)) {
    for (const int pp : {1, 2, 4}) {
      if (pp <= model.config.num_layers()) options.meshes.push_back({tp, pp});
    }
  }
  options.transports = {LocalRanks::Options::Transport::kThreads, LocalRanks::Options::Transport::kShm,
                        LocalRanks::Options::Transport::kGloo};
  options.batches = {1, 2, 3, 7, 16, 17, 64};
  options.chunks = {64, 128, 512, 0};
  options.prefix_hits = {0, 128};
  options.prompt_tokens = std::min<int64_t>(200, model.config.max_positions - options.generated_tokens);
  int64_t tokens = 0, differing = 0, runs = 0;
  PL_RETURN_IF_ERROR(RunExactnessMatrix(options, [&](const ExactnessRun& run) {
                       tokens += run.tokens;
                       differing += run.differing_tokens;
                       ++runs;
                       if (run.differing_tokens == 0) return;
                       std::printf("DIFFERS  tp %d pp %d %s batch %d chunk %lld hit %lld%s: %lld of %lld tokens, "
                                   "first at %s\n",
                                   run.mesh.tp, run.mesh.pp, NameOf(run.transport), run.batch,
                                   static_cast<long long>(run.chunk), static_cast<long long>(run.prefix_hit),
                                   run.preempted ? " preempted" : "",
                                   static_cast<long long>(run.differing_tokens), static_cast<long long>(run.tokens),
                                   run.first_difference.c_str());
                     }).status());
  std::printf("exactness    %lld runs over %zu shapes, %lld tokens compared, %lld differ\n", static_cast<long long>(runs),
              options.meshes.size(), static_cast<long long>(tokens), static_cast<long long>(differing));
  return differing == 0 ? absl::OkStatus() : absl::InternalError("logits depend on the shape of the run");
}

absl::Status RunDoctor(const DoctorFlags& flags) {
  PrintHost();
  return flags.exactness ? CheckModel(flags.model) : absl::OkStatus();
}

}  // namespace

void AddDoctor(CLI::App& app, CommandMain& chosen) {
  auto flags = std::make_shared<DoctorFlags>();
  CLI::App* command =
      app.add_subcommand("doctor", "what this host can do; --exactness proves a model's bits on every shape");
  AddModelSource(*command, flags->model);
  AddCacheFlag(*command, flags->model.cache_dir);
  command->add_option("--arithmetic", flags->model.arithmetic, "pin the version of the arithmetic");
  command->add_option("--compute-dtype", flags->model.compute_dtype, "auto or f32")->check(CLI::IsMember({"auto", "f32"}));
  command->add_flag("--exactness", flags->exactness,
                    "hash every token's logits over batch, chunk, prefix hit, TP, PP, preemption, transport");
  command->footer("Example: plumbline doctor --exactness --model deploy/demo_model/model");
  command->callback([flags, &chosen] { chosen = [flags] { return RunDoctor(*flags); }; });
}

}  // namespace plumbline
