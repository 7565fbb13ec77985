// WeightSource: where a rank's weights come from: a checkpoint, or numbers made up from a seed. Row ranges only, so that
// a rank touches its own bytes and nothing else.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/tensor.h"
#include "parallel/shard_plan.h"

namespace plumbline {

// What tells one checkpoint's bytes from another's.
struct CheckpointIdentity {
  std::string folder;  // absolute
  // SHA-256 over every file's name, header (all names, shapes and places), size, and times of last modification and last
  // change in nanoseconds. A write to a file always moves the latter, and no call sets it back; so do chmod and copying.
  std::string fingerprint;
};

class WeightSource {
 public:
  virtual ~WeightSource() = default;

  // Rows [first, first + count) of a tensor of the plan: [count, columns], dtype as stored, in host memory. Valid until the
  // next call or, when IsMapped(), as long as this source lives. One thread.
  virtual absl::StatusOr<ConstTensor> Rows(const TensorPlan& tensor, RowRange range) = 0;
  // True when Rows gives pointers into a mapped file.
  virtual bool IsMapped() const = 0;
  // The pages of these rows are not needed any more (their bytes were packed elsewhere).
  virtual void Release(const TensorPlan& tensor, RowRange range) = 0;
  // Nothing for weights that are made up.
  virtual std::optional<CheckpointIdentity> Identity() const { return std::nullopt; }
  // Tensors of the file that the model does not use (vision, MTP), for the log.
  virtual std::vector<std::string> SkippedTensors() const { return {}; }
};

// Memory-maps model.safetensors or the files of model.safetensors.index.json. Checks every tensor of the plan before the
// first byte is used: missing, wrong dtype, wrong shape, truncated and overlapping ranges are INVALID_ARGUMENT naming file
// and tensor; so are tensors that are neither in the plan nor known to be skippable (model.visual.*, mtp.*).
absl::StatusOr<std::unique_ptr<WeightSource>> OpenCheckpoint(const std::string& model_dir,
                                                             const ModelConfig& config, const ShardPlan& plan);

// Weights made up per tensor from (seed, name, index), the same for every cluster shape. Scaled so that activations
// stay finite through any depth: uniform with standard deviation 1/sqrt(columns) for matrices, norms near their neutral
// value, decay rates like trained ones.
std::unique_ptr<WeightSource> MakeRandomWeights(const ModelConfig& config, uint64_t seed);

}  // namespace plumbline
