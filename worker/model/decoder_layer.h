// DecoderLayer: norm, mixer, norm, MLP around the residual stream. A layer reads normed and leaves partials; the next
// layer's norm adds them.
#pragma once

#include <memory>
#include <variant>

#include "absl/status/statusor.h"
#include "worker/model/attention.h"
#include "worker/model/delta_net.h"
#include "worker/model/mlp.h"

namespace plumbline {

class DecoderLayer {
 public:
  static absl::StatusOr<DecoderLayer> Load(const ModelConfig& config, const ShardPlan& plan, int64_t index,
                                           WeightLoader& loader);

  // Which rows go through the MLP: after the last layer only those are looked at whose logits are wanted.
  enum class MlpRows { kAll, kWanted };
  // The transport's error when an exchange fails. With kWanted activations hold the batch's wanted rows afterwards.
  absl::Status Forward(const Context& context, const Batch& batch, const SequenceCache& cache, MlpRows mlp_rows,
                       Activations& activations) const;

  // Of what one layer takes between two resets of the scratch, whichever kinds the model has.
  static int64_t ScratchBytes(const ModelConfig& config, const ShardPlan& plan, int64_t rows, DType act);

 private:
  void AddAndNorm(const Context& context, const Buffer& weight, Activations& activations) const;

  int64_t index_ = 0;
  float norm_offset_ = 0;
  float eps_ = 0;
  Buffer input_norm_, post_mixer_norm_;  // [D] f32
  std::variant<std::monostate, Attention, DeltaNet> mixer_;
  std::unique_ptr<Mlp> mlp_;
};

}  // namespace plumbline
