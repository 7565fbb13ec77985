#include "worker/model/decoder_layer.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "proto/status.h"

namespace plumbline {
absl::StatusOr<DecoderLayer> DecoderLayer::Load(const ModelConfig& config, const ShardPlan& plan,
                                                int64_t index, WeightLoader& loader) {
  const std::string prefix = absl::StrCat("model.layers.", index, ".");
  DecoderLayer layer;
  layer.index_ = index;
  layer.is_last_ = index + 1 == config.num_layers();
  layer.hidden_ = config.hidden;
  layer.norm_offset_ = config.norm_offset;
  layer.eps_ = config.norm_eps;
  PL_ASSIGN_OR_RETURN(layer.input_norm_, loader.Vector({prefix + "input_layernorm.weight"}));
  PL_ASSIGN_OR_RETURN(layer.post_mixer_norm_,
                      loader.Vector({prefix + "post_attention_layernorm.weight"}));
  if (config.layers[index].mixer == MixerKind::kAttention) {
    const auto query_rows = layer.is_last_ ? Attention::QueryRows::kWanted : Attention::QueryRows::kAll;
    PL_ASSIGN_OR_RETURN(layer.mixer_, Attention::Load(config, plan, prefix, query_rows, loader));
  } else {
    PL_ASSIGN_OR_RETURN(layer.mixer_, DeltaNet::Load(config, plan, prefix, loader));
  }
  if (config.layers[index].moe) {
    PL_ASSIGN_OR_RETURN(layer.mlp_, LoadMoeMlp(config, prefix, loader));
  } else {
    PL_ASSIGN_OR_RETURN(layer.mlp_, LoadDenseMlp(prefix, loader));
  }
  return layer;
}

ResidualStream::Norm DecoderLayer::NormOf(const Buffer& weight) const {
  return {.weight = weight.View(DType::kF32, {hidden_}), .weight_offset = norm_offset_, .eps = eps_};
}

absl::Status DecoderLayer::Forward(const Context& context, const Batch& batch, const SequenceCache& cache,
                                   ResidualStream& residual, Scratch& scratch) const {
  const auto* attention = std::get_if<Attention>(&mixer_);
  const auto begin = [&] {
    scratch.Reset();
    return Activations{.normed = residual.normed(), .scratch = &scratch};
  };
  PL_RETURN_IF_ERROR(residual.AddAndNorm(NormOf(input_norm_)));
  Activations activations = begin();
  if (is_last_ && attention != nullptr) {
    attention->StoreKeysAndValues(context, batch, cache.KvOf(index_), cache.num_blocks(), activations);
    if (batch.wanted.count < batch.all.count) {
      PL_RETURN_IF_ERROR(residual.Keep(batch.wanted_rows, batch.wanted.count, scratch));
      if (batch.wanted.count == 0) return absl::OkStatus();
      PL_RETURN_IF_ERROR(residual.AddAndNorm(NormOf(input_norm_)));  // nothing is added twice
    }
    activations = begin();
  }
  if (attention != nullptr) {
    attention->Forward(context, batch, cache.KvOf(index_), cache.num_blocks(), activations, residual.Contribution());
  } else {
    std::get<DeltaNet>(mixer_).Forward(context, batch, cache.StateOf(index_), cache.num_slots(), activations,
                                       residual.Contribution());
  }
  PL_RETURN_IF_ERROR(residual.Exchange());

  if (is_last_) PL_RETURN_IF_ERROR(residual.Keep(batch.wanted_rows, batch.wanted.count, scratch));
  if (residual.rows() == 0) return absl::OkStatus();
  PL_RETURN_IF_ERROR(residual.AddAndNorm(NormOf(post_mixer_norm_)));
  activations = begin();
  mlp_->Forward(context, activations, residual.Contribution());
  return residual.Exchange();
}

int64_t DecoderLayer::ScratchBytes(const ModelConfig& config, const ShardPlan& plan, int64_t rows,
                                   DType act) {
  int64_t bytes = Scratch::BytesOf(DType::kF32, rows * config.hidden);  // ResidualStream::Keep
  for (const LayerConfig& layer : config.layers) {
    bytes = std::max(bytes, layer.mixer == MixerKind::kAttention
                                ? Attention::ScratchBytes(config, plan, rows, act)
                                : DeltaNet::ScratchBytes(config, plan, rows, act));
    bytes = std::max(bytes, layer.moe ? MoeMlpScratchBytes(config.moe, rows)
                                      : DenseMlpScratchBytes(layer.ffn / plan.mesh().tp, rows, act));
  }
  return bytes;
}

}  // namespace plumbline
