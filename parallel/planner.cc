#include "parallel/planner.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/ops.h"

namespace plumbline {
namespace {

constexpr int64_t kHeadRows = 64;  // rows whose logits are held at a time

int64_t RoundUp(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

int64_t CountLayers(const ModelConfig& config, StageRange range, MixerKind kind) {
  return std::count_if(config.layers.begin() + range.first, config.layers.begin() + range.last,
                       [kind](const LayerConfig& layer) { return layer.mixer == kind; });
}

int64_t StateBytesPerSequence(const ModelConfig& config, const ShardPlan& plan, StageRange layers,
                              DType act) {
  const GatedDeltaNetConfig& net = config.delta_net;
  const int64_t value_heads = plan.LocalHeads(net.num_value_heads);
  const int64_t channels =
      2 * plan.LocalHeads(net.num_key_heads) * net.key_dim + value_heads * net.value_dim;
  const int64_t recurrent =
      value_heads * net.key_dim * net.value_dim * static_cast<int64_t>(sizeof(float));
  const int64_t convolution = channels * (net.conv_width - 1) * static_cast<int64_t>(SizeOf(act));
  return CountLayers(config, layers, MixerKind::kGatedDeltaNet) * (recurrent + convolution);
}

// Intermediates of one layer: they share one buffer, in tensors rounded up to 64 bytes.
int64_t ScratchBytes(const ModelConfig& config, const ShardPlan& plan, const LayerConfig& layer,
                     int64_t rows, DType act_type) {
  const int64_t f32 = sizeof(float), act = static_cast<int64_t>(SizeOf(act_type));
  const auto tensor = [](int64_t bytes) { return RoundUp(bytes, 64); };
  const auto spread = [&](int64_t columns) { return tensor(rows * SpreadStride(act_type, columns) * act); };
  int64_t mixer = 0, feed_forward = 0;
  if (layer.mixer == MixerKind::kAttention) {
    const int64_t head = config.attention.head_dim, gated = config.attention.output_gate ? 2 : 1;
    const int64_t heads = plan.LocalHeads(config.attention.num_heads);
    const int64_t kv_heads = plan.LocalKvHeads(config.attention.num_kv_heads);
    mixer += tensor(rows * (gated * heads + 2 * kv_heads) * head * f32);  // q | gate | k | v
    mixer += tensor(rows * heads * head * act);                           // q, normed and rotated
    mixer += spread(heads * head);                                        // attention output
  } else {
    const GatedDeltaNetConfig& net = config.delta_net;
    const int64_t heads = plan.LocalHeads(net.num_value_heads), values = heads * net.value_dim;
    const int64_t channels = net.conv_channels() / plan.mesh().tp;
    mixer += spread(channels);                           // q | k | v
    mixer += tensor(rows * (values + 2 * heads) * f32);  // z | b | a
    mixer += tensor(rows * channels * f32);              // convolution output
    mixer += spread(values);                             // gated norm output
  }
  if (layer.moe) {
    feed_forward += tensor(rows * config.moe.num_experts * f32);        // router logits
    feed_forward += tensor(rows * config.moe.experts_per_token * 4);    // chosen experts
    feed_forward += tensor(rows * config.moe.experts_per_token * f32);  // their weights
  } else {
    feed_forward += spread(layer.ffn / plan.mesh().tp);                 // silu(gate) * up
  }
  return std::max(mixer, feed_forward);
}

// Everything a stage lays out for a step but weights and caches; a test holds it against the
// stage's own count.
int64_t ActivationBytes(const ModelConfig& config, const ShardPlan& plan, int stage,
                        const CacheLimits& limits, DType act_type) {
  const int64_t f32 = sizeof(float), act = static_cast<int64_t>(SizeOf(act_type));
  const int64_t rows = limits.max_step_tokens, tp = plan.mesh().tp, padded = RoundUp(rows, tp);
  int64_t bytes = 0, scratch = RoundUp(rows * config.hidden * f32, 64);  // rows gathered for the logits
  bytes += padded * config.hidden * f32;                          // the residual stream
  bytes += RoundUp(padded * SpreadStride(act_type, config.hidden) * act, 64);  // its norm
  bytes += padded * config.hidden * f32 * (tp > 1 ? tp + 2 : 1);  // partials: own, all, a slice
  for (const LayerConfig& layer : config.layers) {
    scratch = std::max(scratch, ScratchBytes(config, plan, layer, rows, act_type));
  }
  bytes += scratch;
  if (stage == plan.mesh().pp - 1) {
    const int64_t local = plan.VocabLeafRows() * (kNumLeaves / tp);
    bytes += kHeadRows * config.hidden * act;              // normed rows
    bytes += kHeadRows * local * f32;                      // this rank's logits
    bytes += kHeadRows * local * f32 * (tp > 1 ? tp : 0);  // all ranks' logits
    bytes += kHeadRows * config.vocab * f32 * 2;           // side by side, and with penalties
  }
  return bytes;
}

// The embedding table stays as stored; a tied head is a packed copy of it.
int64_t HeldBytesPerElement(const ModelConfig& config, const ShardPlan& plan,
                            const TensorPlan& tensor, int stage, DType compute_dtype) {
  const int64_t act = static_cast<int64_t>(SizeOf(compute_dtype));
  if (tensor.kept_f32) return sizeof(float);
  if (tensor.name != "model.embed_tokens.weight") return act;
  const int64_t table = stage == 0 ? static_cast<int64_t>(SizeOf(config.dtype)) : 0;
  const int64_t head = config.tied_head && stage == plan.mesh().pp - 1 ? act : 0;
  return table + head;
}

}  // namespace

int64_t KvBytesPerToken(const ModelConfig& config, DType cache_dtype) {
  return config.num_layers_of(MixerKind::kAttention) * 2 * config.attention.num_kv_heads *
         config.attention.head_dim * static_cast<int64_t>(SizeOf(cache_dtype));
}

std::vector<RankBytes> PlanMemory(const ModelConfig& config, const ShardPlan& plan,
                                  const CacheLimits& limits, DType compute_dtype) {
  const int64_t act = static_cast<int64_t>(SizeOf(compute_dtype));
  const int64_t stored = static_cast<int64_t>(SizeOf(config.dtype));
  std::vector<RankBytes> ranks(plan.mesh().size());
  for (int rank = 0; rank < plan.mesh().size(); ++rank) {
    RankBytes& bytes = ranks[rank];
    bytes = {
        .rank = rank, .stage = plan.mesh().StageOf(rank), .tp_index = plan.mesh().TpIndexOf(rank)};
    for (const TensorPlan& tensor : plan.tensors()) {
      const TensorSlice slice = plan.SliceOf(tensor.name, rank);
      const int64_t elements = slice.num_rows() * slice.num_columns;
      bytes.parameters += elements;
      bytes.checkpoint_bytes += elements * stored;
      bytes.weight_bytes +=
          elements * HeldBytesPerElement(config, plan, tensor, bytes.stage, compute_dtype);
    }
    const StageRange layers = plan.LayersOf(bytes.stage);
    const int64_t kv_elements_per_token = CountLayers(config, layers, MixerKind::kAttention) * 2 *
                                          plan.LocalKvHeads(config.attention.num_kv_heads) *
                                          config.attention.head_dim;
    bytes.kv_bytes = RoundUp(limits.max_tokens, kBlockTokens) * kv_elements_per_token * act;
    bytes.state_bytes =
        limits.num_state_slots() * StateBytesPerSequence(config, plan, layers, compute_dtype);
    bytes.activation_bytes = ActivationBytes(config, plan, bytes.stage, limits, compute_dtype);
  }
  return ranks;
}

absl::Status CheckFits(const std::vector<RankBytes>& ranks, int64_t available_bytes_per_rank) {
  const auto worst = std::max_element(
      ranks.begin(), ranks.end(),
      [](const RankBytes& a, const RankBytes& b) { return a.total() < b.total(); });
  if (worst == ranks.end() || worst->total() <= available_bytes_per_rank) return absl::OkStatus();
  const auto gib = [](int64_t bytes) {
    return absl::StrFormat("%.2f GiB", static_cast<double>(bytes) / (1 << 30));
  };
  return absl::ResourceExhaustedError(
      absl::StrCat("rank ", worst->rank, " needs ", worst->total(), " bytes (weights ",
                   gib(worst->weight_bytes), ", KV cache ", gib(worst->kv_bytes),
                   ", recurrent state ", gib(worst->state_bytes), ", activations ",
                   gib(worst->activation_bytes), "), ", worst->total() - available_bytes_per_rank,
                   " more than the ", available_bytes_per_rank, " it has"));
}

}  // namespace plumbline
