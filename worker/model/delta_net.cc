#include "worker/model/delta_net.h"

#include "proto/status.h"

namespace plumbline {
namespace {

GatedDeltaNetConfig LocalPart(const ModelConfig& config, const ShardPlan& plan) {
  GatedDeltaNetConfig local = config.delta_net;
  local.num_key_heads /= plan.mesh().tp;
  local.num_value_heads /= plan.mesh().tp;
  return local;
}

// z | b | a
int64_t GatesWidth(const GatedDeltaNetConfig& local) { return local.num_value_heads * (local.value_dim + 2); }

}  // namespace

absl::StatusOr<DeltaNet> DeltaNet::Load(const ModelConfig& config, const ShardPlan& plan,
                                        const std::string& prefix, WeightLoader& loader) {
  DeltaNet layer;
  layer.local_ = LocalPart(config, plan);
  layer.eps_ = config.norm_eps;
  const std::string self = prefix + "linear_attn.";
  PL_ASSIGN_OR_RETURN(layer.projection_,
                      loader.Linear({self + "in_proj_qkv.weight", self + "in_proj_z.weight",
                                     self + "in_proj_b.weight", self + "in_proj_a.weight"}));
  PL_ASSIGN_OR_RETURN(layer.conv_, loader.Vector({self + "conv1d.weight"}));
  PL_ASSIGN_OR_RETURN(layer.a_log_, loader.Vector({self + "A_log"}));
  PL_ASSIGN_OR_RETURN(layer.dt_bias_, loader.Vector({self + "dt_bias"}));
  PL_ASSIGN_OR_RETURN(layer.norm_, loader.Vector({self + "norm.weight"}));
  PL_ASSIGN_OR_RETURN(layer.out_, loader.Linear({self + "out_proj.weight"}));
  return layer;
}

void DeltaNet::Forward(const Context& context, const Batch& batch, const StateCache& cache,
                       int64_t num_slots, Activations& activations, Tensor out) const {
  const int64_t rows = batch.all.count, channels = local_.conv_channels();
  const int64_t heads = local_.num_value_heads;
  Scratch& scratch = *activations.scratch;
  Tensor qkv = scratch.TakeSpread(context.act, rows, channels);
  Tensor gates = scratch.Take(DType::kF32, {rows, GatesWidth(local_)});
  Tensor conv = scratch.Take(DType::kF32, {rows, channels});
  Tensor mixed = scratch.TakeSpread(context.act, rows, heads * local_.value_dim);
  context.ops->Linear({.out = gates,
                       .x = activations.normed,
                       .weight = projection_.packed(),
                       .shape = projection_.shape,
                       .rounded = qkv});
  context.ops->ConvGatedDeltaNet(
      {.conv = {.out = conv,
                .state = cache.conv.View(context.act, {num_slots, channels, local_.conv_width - 1}),
                .x = qkv,
                .weight = conv_.View(DType::kF32, {channels, local_.conv_width}),
                .sequences = batch.all.sequences},
       .delta = {.out = mixed,
                 .state = cache.recurrent.View(DType::kF32, {num_slots, heads, local_.key_dim, local_.value_dim}),
                 .conv = conv,
                 .gates = gates,
                 .a_log = a_log_.View(DType::kF32, {heads}),
                 .dt_bias = dt_bias_.View(DType::kF32, {heads}),
                 .norm = norm_.View(DType::kF32, {local_.value_dim}),
                 .sequences = batch.all.sequences,
                 .num_key_heads = local_.num_key_heads,
                 .eps = eps_,
                 .activation = local_.sigmoid_gate ? GateActivation::kSigmoid : GateActivation::kSilu}});
  context.ops->Linear({.out = out, .x = mixed, .weight = out_.packed(), .shape = out_.shape});
}

int64_t DeltaNet::ScratchBytes(const ModelConfig& config, const ShardPlan& plan, int64_t rows, DType act) {
  const GatedDeltaNetConfig local = LocalPart(config, plan);
  return Scratch::SpreadBytesOf(act, rows, local.conv_channels()) +
         Scratch::BytesOf(DType::kF32, rows * GatesWidth(local)) +
         Scratch::BytesOf(DType::kF32, rows * local.conv_channels()) +
         Scratch::SpreadBytesOf(act, rows, local.num_value_heads * local.value_dim);
}

}  // namespace plumbline
