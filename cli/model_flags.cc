#include "cli/model_flags.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "parallel/shard_plan.h"
#include "proto/status.h"
#include "worker/host_facts.h"

namespace plumbline {
namespace {

constexpr int64_t kDefaultKvBytes = int64_t{4} << 30;
constexpr int64_t kDefaultSequences = 32;
constexpr int64_t kDefaultStepTokens = 512;

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat("cannot read ", path));
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

absl::StatusOr<std::optional<uint64_t>> ParseWeights(const std::string& weights) {
  if (weights.empty()) return std::nullopt;
  uint64_t seed = 0;
  if (!absl::StartsWith(weights, "random:") || !absl::SimpleAtoi(weights.substr(7), &seed)) {
    return absl::InvalidArgumentError(absl::StrCat("--weights '", weights, "': expected random:SEED"));
  }
  return seed;
}

}  // namespace

void AddCacheFlag(CLI::App& command, std::string& cache_dir) {
  command.add_option("--cache-dir", cache_dir,
                     "folder for packed weights, as large as the model: later starts read them back");
}

void AddModelSource(CLI::App& command, ModelFlags& flags) {
  command.add_option("--model", flags.model, "directory of a checkpoint (config.json, model*.safetensors)");
  command.add_option("--config", flags.config, "config.json of a model without a checkpoint; implies random weights");
  command.add_option("--layers", flags.layers, "use the first N layers only")->check(CLI::NonNegativeNumber);
  command.add_option("--weights", flags.weights, "random:SEED makes weights up instead of reading them");
}

void AddRunFlags(CLI::App& command, ModelFlags& flags) {
  AddCacheFlag(command, flags.cache_dir);
  command.add_option("--tp", flags.mesh.tp, "tensor-parallel ranks: 1, 2, 4 or 8")->check(CLI::IsMember({1, 2, 4, 8}));
  command.add_option("--pp", flags.mesh.pp, "pipeline stages")->check(CLI::Range(1, 64));
  command.add_option("--device", flags.device, "auto or cpu")->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  command.add_option("--arithmetic", flags.arithmetic, "pin the version of the arithmetic (see `plumbline doctor`)");
  command.add_option("--compute-dtype", flags.compute_dtype, "auto: as stored; f32: everything in 32 bit, for audits")
      ->check(CLI::IsMember({"auto", "f32"}));
  command.add_option("--threads", flags.threads, "threads of each rank; 0: all cores, dealt out")
      ->check(CLI::Range(0, 1024));
  command.add_option("--max-tokens", flags.limits.max_tokens, "KV cache, in tokens of all sequences together")
      ->check(CLI::NonNegativeNumber);
  command.add_option("--max-sequences", flags.limits.max_sequences, "sequences under way at once")
      ->check(CLI::NonNegativeNumber);
  command.add_option("--max-step-tokens", flags.limits.max_step_tokens, "tokens of one step, at least 64")
      ->check(CLI::NonNegativeNumber);
}

void AddPrefixCacheFlags(CLI::App& command, ModelFlags& flags) {
  flags.prefix_cache = "on";
  command.add_option("--prefix-cache", flags.prefix_cache, "on: prompts take over what the caches hold of them")
      ->check(CLI::IsMember({"on", "off"}));
  command.add_option("--prefix-cache-states", flags.prefix_cache_states,
                     "recurrent states kept for it beside those of running sequences; only hybrid models have them")
      ->check(CLI::Range(0, 65536));
}

absl::StatusOr<NamedModel> OpenNamedModel(const ModelFlags& flags) {
  NamedModel model;
  if (flags.model.empty() == flags.config.empty()) {
    return absl::InvalidArgumentError("give either --model DIR or --config FILE.json");
  }
  if (flags.device == "cuda") {
    return absl::InvalidArgumentError("--device cuda: this build has no CUDA backend; it has: cpu");
  }
  PL_ASSIGN_OR_RETURN(model.random_seed, ParseWeights(flags.weights));
  if (flags.model.empty()) {
    PL_ASSIGN_OR_RETURN(model.config_json, ReadFile(flags.config));
    PL_ASSIGN_OR_RETURN(model.config, ParseModelConfig(model.config_json));
    if (!model.random_seed) model.random_seed = 0;
  } else {
    model.dir = std::filesystem::absolute(flags.model).string();  // workers have another working directory
    PL_ASSIGN_OR_RETURN(model.config, ReadModelConfig(flags.model));
    PL_ASSIGN_OR_RETURN(model.config_json, ReadFile(flags.model + "/config.json"));
  }
  if (flags.layers > 0) {
    if (flags.layers > model.config.num_layers()) {
      return absl::InvalidArgumentError(
          absl::StrCat("--layers ", flags.layers, ": the model has ", model.config.num_layers()));
    }
    model.config = WithLayers(std::move(model.config), flags.layers);
  }
  model.compute_dtype = flags.compute_dtype == "f32" ? DType::kF32 : model.config.dtype;
  return model;
}

std::function<absl::StatusOr<std::unique_ptr<WeightSource>>(const ShardPlan& plan)> WeightOpener(const NamedModel& model) {
  if (model.random_seed) {
    return [config = model.config, seed = *model.random_seed](
               const ShardPlan&) -> absl::StatusOr<std::unique_ptr<WeightSource>> {
      return MakeRandomWeights(config, seed);
    };
  }
  return [dir = model.dir, config = model.config](const ShardPlan& plan) { return OpenCheckpoint(dir, config, plan); };
}

CacheLimits LimitsFor(const ModelFlags& flags, const NamedModel& model) {
  CacheLimits limits = flags.limits;
  limits.max_cached_states = flags.prefix_cache == "on" ? flags.prefix_cache_states : 0;
  if (limits.max_sequences == 0) limits.max_sequences = kDefaultSequences;
  if (limits.max_step_tokens == 0) {
    // Room for a prompt chunk beside all decodes.
    limits.max_step_tokens = std::max(kDefaultStepTokens, (limits.max_sequences + 127) / 64 * 64);
  }
  if (limits.max_tokens == 0) {
    const int64_t per_token = std::max<int64_t>(1, KvBytesPerToken(model.config, model.compute_dtype));
    limits.max_tokens = std::min(kDefaultKvBytes / per_token, limits.max_sequences * model.config.max_positions);
  }
  return limits;
}

int ThreadsPerRank(const ModelFlags& flags, int ranks_on_host) {
  if (flags.threads > 0) return flags.threads;
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()) / ranks_on_host);
}

absl::Status CheckHostMemory(const NamedModel& model, Mesh mesh, const CacheLimits& limits) {
  PL_ASSIGN_OR_RETURN(ShardPlan plan, ShardPlan::Make(model.config, mesh));
  int64_t needed = 0;
  for (const RankBytes& rank : PlanMemory(model.config, plan, limits, model.compute_dtype)) needed += rank.total();
  const int64_t available = AvailableMemoryBytes();
  if (needed <= available) return absl::OkStatus();
  constexpr double kGiB = 1 << 30;
  return absl::ResourceExhaustedError(absl::StrFormat(
      "the model needs %.2f GiB at tp %d, pp %d and this host has %.2f GiB free: %.2f GiB too little "
      "(--max-tokens, --max-sequences and --prefix-cache-states make the caches smaller)",
      needed / kGiB, mesh.tp, mesh.pp, available / kGiB, (needed - available) / kGiB));
}

}  // namespace plumbline
