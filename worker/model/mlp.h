// Mlp: the feed-forward half of a decoder layer: a dense SwiGLU (arXiv:2002.05202) or a mixture of such experts.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "parallel/model_config.h"
#include "worker/model/context.h"
#include "worker/model/weight_loader.h"

namespace plumbline {

class Mlp {
 public:
  virtual ~Mlp() = default;
  // out [T, D] f32 = this rank's partial sum. T = activations.normed's rows.
  virtual void Forward(const Context& context, Activations& activations, Tensor out) const = 0;
};

// prefix: "model.layers.3.".
absl::StatusOr<std::unique_ptr<Mlp>> LoadDenseMlp(const std::string& prefix, WeightLoader& loader);
absl::StatusOr<std::unique_ptr<Mlp>> LoadMoeMlp(const ModelConfig& config, const std::string& prefix,
                                                WeightLoader& loader);

int64_t DenseMlpScratchBytes(int64_t local_ffn, int64_t rows, DType act);
int64_t MoeMlpScratchBytes(const MoeConfig& config, int64_t rows);

}  // namespace plumbline
