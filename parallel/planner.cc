#include "parallel/planner.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/ops.h"

namespace plumbline {
namespace {

int64_t RoundUp(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

int64_t CountLayers(const ModelConfig& config, StageRange range, MixerKind kind) {
  return std::count_if(config.layers.begin() + range.first, config.layers.begin() + range.last,
                       [kind](const LayerConfig& layer) { return layer.mixer == kind; });
}

int64_t StateBytesPerSequence(const ModelConfig& config, const ShardPlan& plan, StageRange layers, DType act) {
  const GatedDeltaNetConfig& net = config.delta_net;
  const int64_t value_heads = plan.LocalHeads(net.num_value_heads);
  const int64_t channels =
      2 * plan.LocalHeads(net.num_key_heads) * net.key_dim + value_heads * net.value_dim;
  const int64_t recurrent = value_heads * net.key_dim * net.value_dim * static_cast<int64_t>(sizeof(float));
  const int64_t convolution = channels * (net.conv_width - 1) * static_cast<int64_t>(SizeOf(act));
  return CountLayers(config, layers, MixerKind::kGatedDeltaNet) * (recurrent + convolution);
}

// The buffers of one step, one line each. Mixer and feed-forward buffers are shared by the layers.
int64_t ActivationBytes(const ModelConfig& config, const ShardPlan& plan, int rank, const CacheLimits& limits,
                        DType act_type) {
  const int64_t f32 = sizeof(float), act = static_cast<int64_t>(SizeOf(act_type)), tp = plan.mesh().tp;
  const int stage = plan.mesh().StageOf(rank);
  const StageRange layers = plan.LayersOf(stage);
  int64_t row = 0;                             // bytes per row of a step
  row += config.hidden * f32;                  // h: the residual stream
  row += config.hidden * act;                  // normed: the input of a linear
  row += (tp == 1 ? 1 : tp + 2) * config.hidden * f32;  // partials: own, gathered, slice
  int64_t mixer = 0, feed_forward = 0;
  if (CountLayers(config, layers, MixerKind::kAttention) > 0) {
    const int64_t head = config.attention.head_dim, heads = plan.LocalHeads(config.attention.num_heads);
    const int64_t projections = heads * (config.attention.output_gate ? 2 : 1) +
                                2 * plan.LocalKvHeads(config.attention.num_kv_heads);
    const int64_t attention = projections * head * f32  // q | gate | k | v
                              + heads * head * act      // q after norm and rotation
                              + heads * head * act;     // attention output
    row += config.rope.rotary_dim * f32;                // cos and sin
    mixer = std::max(mixer, attention);
  }
  if (CountLayers(config, layers, MixerKind::kGatedDeltaNet) > 0) {
    const GatedDeltaNetConfig& net = config.delta_net;
    const int64_t heads = plan.LocalHeads(net.num_value_heads), values = heads * net.value_dim;
    const int64_t channels = 2 * plan.LocalHeads(net.num_key_heads) * net.key_dim + values;
    const int64_t delta_net = (channels + values + 2 * heads) * f32  // q k v | z | b | a
                              + channels * f32                       // convolution output
                              + values * act;                        // gated norm output
    mixer = std::max(mixer, delta_net);
  }
  for (int64_t i = layers.first; i < layers.last; ++i) {
    const LayerConfig& layer = config.layers[i];
    const int64_t routing = config.moe.num_experts * f32            // router logits
                            + config.moe.experts_per_token * 2 * f32;  // chosen experts and their weights
    feed_forward = std::max(feed_forward, layer.moe ? routing : layer.ffn / tp * act);
  }
  row += mixer + feed_forward;
  int64_t bytes = row * limits.max_step_tokens;
  if (stage == plan.mesh().pp - 1) {
    const int64_t rows = std::min(limits.max_sequences, limits.max_step_tokens);
    const int64_t leaves = plan.VocabLeafRows() * kNumLeaves;
    bytes += rows * config.hidden * act;       // normed rows of the head
    bytes += rows * leaves / tp * f32;         // this rank's logits
    if (tp > 1) bytes += rows * leaves * f32;  // all ranks' logits, part after part
    bytes += rows * config.vocab * f32;        // logits side by side
  }
  return bytes;
}

}  // namespace

int64_t KvBytesPerToken(const ModelConfig& config, DType cache_dtype) {
  return config.num_layers_of(MixerKind::kAttention) * 2 * config.attention.num_kv_heads *
         config.attention.head_dim * static_cast<int64_t>(SizeOf(cache_dtype));
}

std::vector<RankBytes> PlanMemory(const ModelConfig& config, const ShardPlan& plan, const CacheLimits& limits,
                                  DType compute_dtype) {
  const int64_t f32 = sizeof(float), act = static_cast<int64_t>(SizeOf(compute_dtype));
  const int64_t stored = static_cast<int64_t>(SizeOf(config.dtype));
  std::vector<RankBytes> ranks(plan.mesh().size());
  for (int rank = 0; rank < plan.mesh().size(); ++rank) {
    RankBytes& bytes = ranks[rank];
    bytes = {.rank = rank, .stage = plan.mesh().StageOf(rank), .tp_index = plan.mesh().TpIndexOf(rank)};
    for (const TensorPlan& tensor : plan.tensors()) {
      const TensorSlice slice = plan.SliceOf(tensor.name, rank);
      const int64_t elements = slice.num_rows() * slice.num_columns;
      bytes.parameters += elements;
      bytes.checkpoint_bytes += elements * stored;
      bytes.weight_bytes += elements * (tensor.kept_f32 ? f32 : act);
    }
    const StageRange layers = plan.LayersOf(bytes.stage);
    const int64_t kv_elements_per_token = CountLayers(config, layers, MixerKind::kAttention) * 2 *
                                          plan.LocalKvHeads(config.attention.num_kv_heads) *
                                          config.attention.head_dim;
    bytes.kv_bytes = RoundUp(limits.max_tokens, kBlockTokens) * kv_elements_per_token * act;
    bytes.state_bytes = limits.max_sequences * StateBytesPerSequence(config, plan, layers, compute_dtype);
    bytes.activation_bytes = ActivationBytes(config, plan, rank, limits, compute_dtype);
  }
  return ranks;
}

absl::Status CheckFits(const std::vector<RankBytes>& ranks, int64_t available_bytes_per_rank) {
  const auto worst = std::max_element(ranks.begin(), ranks.end(), [](const RankBytes& a, const RankBytes& b) {
    return a.total() < b.total();
  });
  if (worst == ranks.end() || worst->total() <= available_bytes_per_rank) return absl::OkStatus();
  const auto gib = [](int64_t bytes) { return absl::StrFormat("%.2f GiB", static_cast<double>(bytes) / (1 << 30)); };
  return absl::ResourceExhaustedError(absl::StrCat(
      "rank ", worst->rank, " needs ", worst->total(), " bytes (weights ", gib(worst->weight_bytes), ", KV cache ",
      gib(worst->kv_bytes), ", recurrent state ", gib(worst->state_bytes), ", activations ",
      gib(worst->activation_bytes), "), ", worst->total() - available_bytes_per_rank, " more than the ",
      available_bytes_per_rank, " it has"));
}

}  // namespace plumbline
