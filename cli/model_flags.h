// ModelFlags: the options that every command with a model shares, and the model they name.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "parallel/mesh.h"
#include "parallel/model_config.h"
#include "parallel/planner.h"
#include "worker/weight_source.h"

namespace CLI {
class App;
}

namespace plumbline {

struct ModelFlags {
  std::string model;          // directory of a checkpoint
  std::string config;         // config.json of a model without checkpoint
  std::string weights;        // "random:SEED"
  int64_t layers = 0;         // first layers only; 0: all
  std::string cache_dir;      // of packed weights; empty: none
  Mesh mesh;
  std::string device = "auto";
  std::string arithmetic;
  std::string compute_dtype = "auto";
  int threads = 0;            // of each rank; 0: the cores of this machine dealt out over its ranks
  CacheLimits limits = {.max_tokens = 0, .max_sequences = 0, .max_step_tokens = 0};  // 0: default
  std::string prefix_cache = "off";  // "on" by default where AddPrefixCacheFlags is used
  int64_t prefix_cache_states = 8;   // state slots for it
};

// --cache-dir.
void AddCacheFlag(CLI::App& command, std::string& cache_dir);
// --model, --config, --layers, --weights.
void AddModelSource(CLI::App& command, ModelFlags& flags);
// --cache-dir, --tp, --pp, --device, --arithmetic, --compute-dtype, --threads, --max-tokens, --max-sequences,
// --max-step-tokens.
void AddRunFlags(CLI::App& command, ModelFlags& flags);

// --prefix-cache, --prefix-cache-states.
void AddPrefixCacheFlags(CLI::App& command, ModelFlags& flags);

struct NamedModel {
  ModelConfig config;
  std::string config_json;
  std::string dir;                      // empty without a checkpoint
  std::optional<uint64_t> random_seed;  // weights made up
  DType compute_dtype = DType::kBf16;
};

absl::StatusOr<NamedModel> OpenNamedModel(const ModelFlags& flags);

// A rank's source of weights for that model.
std::function<absl::StatusOr<std::unique_ptr<WeightSource>>(const ShardPlan& plan)> WeightOpener(const NamedModel& model);

// Flags with defaults filled in for this model: enough KV for max_sequences whole contexts or what 4 GiB hold.
CacheLimits LimitsFor(const ModelFlags& flags, const NamedModel& model);
int ThreadsPerRank(const ModelFlags& flags, int ranks_on_host);

// RESOURCE_EXHAUSTED before anything is loaded when the ranks of this host together need more memory than is free.
absl::Status CheckHostMemory(const NamedModel& model, Mesh mesh, const CacheLimits& limits);

}  // namespace plumbline
