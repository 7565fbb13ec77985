// DecoderLayer: norm, mixer, norm, MLP around the residual stream. What a layer adds to it last, the next layer's norm adds.
#pragma once

#include <memory>
#include <variant>

#include "absl/status/statusor.h"
#include "worker/model/attention.h"
#include "worker/model/delta_net.h"
#include "worker/model/mlp.h"
#include "worker/model/residual_stream.h"

namespace plumbline {

class DecoderLayer {
 public:
  static absl::StatusOr<DecoderLayer> Load(const ModelConfig& config, const ShardPlan& plan, int64_t index,
                                           WeightLoader& loader);

  // The transport's error when an exchange fails. The model's last layer leaves the batch's wanted rows in residual,
  // whole on every rank; of the others it fills caches only.
  absl::Status Forward(const Context& context, const Batch& batch, const SequenceCache& cache, ResidualStream& residual,
                       Scratch& scratch) const;

  // Of what one layer takes between two resets of the scratch, whichever kinds the model has.
  static int64_t ScratchBytes(const ModelConfig& config, const ShardPlan& plan, int64_t rows, DType act);

 private:
  ResidualStream::Norm NormOf(const Buffer& weight) const;

  int64_t index_ = 0;
  bool is_last_ = false;  // of the model
  int64_t hidden_ = 0;
  float norm_offset_ = 0;
  float eps_ = 0;
  Buffer input_norm_, post_mixer_norm_;  // [D] f32
  std::variant<std::monostate, Attention, DeltaNet> mixer_;
  std::unique_ptr<Mlp> mlp_;
};

}  // namespace plumbline
