// StartRunner: ranks of this host behind the engine's StepRunner, whichever way they talk.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cli/model_flags.h"
#include "coordinator/engine/step_runner.h"
#include "kernels/profiled_ops.h"

namespace plumbline {

struct RankMemory {
  int64_t weight_bytes = 0;
  int64_t rss_bytes = 0;  // 0 where ranks share a process
};

struct StartedRunner {
  std::unique_ptr<StepRunner> runner;
  std::string arithmetic;
  CacheLimits limits;
  std::function<std::vector<RankMemory>()> memory;  // by rank, now
};

inline constexpr char kRunnerTransportHelp[] =
    "ranks are threads (threads; shm and gloo: that talk like processes), or processes (a real cluster; "
    "processes-gloo: over TCP)";
std::vector<std::string> RunnerTransports();

// transport: one of RunnerTransports(). "threads", "shm", "gloo": ranks are threads of this process; "processes": a
// coordinator and worker processes, as in a cluster; "processes-gloo": and no memory shared. Shows a progress bar while
// loading on a terminal. profile: where given, the time of every op is kept there; one rank only, outlives the runner.
absl::StatusOr<StartedRunner> StartRunner(const ModelFlags& flags, const NamedModel& model, const std::string& transport,
                                          OpProfile* profile = nullptr);

}  // namespace plumbline
