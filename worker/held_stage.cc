#include "worker/held_stage.h"

#include <cstdio>

#include "absl/strings/str_cat.h"
#include "proto/cluster.pb.h"
#include "proto/status.h"
#include "worker/backend_factory.h"

namespace plumbline {
namespace {

// Equal for configurations that lead to the same stage.
std::string StageKey(const v1::Configure& configure) {
  v1::Configure key = configure;
  key.clear_epoch();
  key.clear_step_timeout_ms();
  return key.SerializeAsString();
}

absl::StatusOr<ModelConfig> ParseConfig(const v1::Configure& configure) {
  PL_ASSIGN_OR_RETURN(ModelConfig config, ParseModelConfig(configure.config_json()));
  if (configure.num_layers() > 0) config = WithLayers(std::move(config), configure.num_layers());
  if (config.Fingerprint() != configure.fingerprint()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "reads the model's configuration as ", config.Fingerprint(), ", the coordinator as ",
        configure.fingerprint(), "; use the same build everywhere"));
  }
  return config;
}

}  // namespace

absl::StatusOr<HeldStage::Outcome> HeldStage::Hold(
    const v1::Configure& configure, const std::function<void(Progress)>& on_progress) {
  std::string key = StageKey(configure);
  if (stage_ != nullptr && key == held_) return Outcome::kKept;
  // What is held makes room first.
  stage_.reset();
  source_.reset();
  if (absl::Status status = Load(configure, on_progress); !status.ok()) {
    stage_.reset();
    source_.reset();
    return status;
  }
  held_ = std::move(key);
  return Outcome::kLoaded;
}

absl::Status HeldStage::Load(const v1::Configure& configure,
                             const std::function<void(Progress)>& on_progress) {
  PL_ASSIGN_OR_RETURN(const ModelConfig config, ParseConfig(configure));
  const Mesh mesh = {.tp = configure.tp(), .pp = configure.pp()};
  PL_ASSIGN_OR_RETURN(const ShardPlan plan, ShardPlan::Make(config, mesh));
  const int rank = configure.rank();
  if (rank < 0 || rank >= mesh.size()) {
    return absl::InvalidArgumentError(absl::StrCat("rank ", rank, " of a mesh of ", mesh.size()));
  }
  const CacheLimits limits = {.max_tokens = configure.max_tokens(),
                              .max_sequences = configure.max_sequences(),
                              .max_step_tokens = configure.max_step_tokens(),
                              .max_cached_states = configure.max_cached_states()};
  const DType compute_dtype = configure.compute_dtype() == "f32" ? DType::kF32 : config.dtype;
  const int64_t bytes_total =
      PlanMemory(config, plan, limits, compute_dtype)[rank].checkpoint_bytes;
  if (configure.has_random_seed()) {
    source_ = MakeRandomWeights(config, configure.random_seed());
  } else {
    PL_ASSIGN_OR_RETURN(source_, OpenCheckpoint(configure.model_dir(), config, plan));
  }
  PL_ASSIGN_OR_RETURN(Backend backend, MakeBackend({.arithmetic = configure.arithmetic(),
                                                    .num_threads = configure.num_threads()}));
  PL_ASSIGN_OR_RETURN(stage_, Stage::Load({.config = config,
                                           .mesh = mesh,
                                           .rank = rank,
                                           .limits = limits,
                                           .compute_dtype = compute_dtype,
                                           .on_progress =
                                               [&](int64_t bytes_done) {
                                                 on_progress({bytes_done, bytes_total});
                                               },
                                           .cache_dir = cache_dir_,
                                           .on_line =
                                               [](const std::string& line) {
                                                 std::fprintf(stderr, "%s\n", line.c_str());
                                               }},
                                          std::move(backend), *source_));
  return absl::OkStatus();
}

}  // namespace plumbline
