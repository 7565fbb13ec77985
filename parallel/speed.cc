#include "parallel/speed.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "kernels/ops.h"

namespace plumbline {
namespace {

double Real(int64_t n) { return static_cast<double>(n); }

bool IsLinear(const ModelConfig& config, const TensorPlan& tensor) {
  if (tensor.kept_f32 || tensor.columns == 1) return false;
  return config.tied_head || tensor.name != "model.embed_tokens.weight";
}
bool IsExpert(const TensorPlan& tensor) { return absl::StrContains(tensor.name, ".experts."); }
bool IsHead(const TensorPlan& tensor) {
  return tensor.name == "lm_head.weight" || tensor.name == "model.embed_tokens.weight";
}

// From the queries of the last layer on, or from its MLP on behind a delta net, only the rows go on whose logits are wanted:
// one of each sequence.
bool IsOfWantedRows(const ModelConfig& config, const TensorPlan& tensor) {
  if (IsHead(tensor)) return true;
  const std::string layer = absl::StrCat("model.layers.", config.num_layers() - 1, ".");
  if (!absl::StartsWith(tensor.name, layer)) return false;
  for (const char* part : {".mlp.", ".block_sparse_moe.", ".self_attn.q_proj.", ".self_attn.o_proj."}) {
    if (absl::StrContains(tensor.name, part)) return true;
  }
  return false;
}

// Share of the experts that so many rows choose, if they choose evenly.
double ShareOfExperts(const MoeConfig& moe, double rows) {
  return 1 - std::pow(1 - Real(moe.experts_per_token) / Real(moe.num_experts), rows);
}

void AddAttention(const ModelConfig& config, const ShardPlan& plan, DType act, const StepShape& step, StepCost& cost) {
  const double kv_row = Real(plan.LocalKvHeads(config.attention.num_kv_heads) * config.attention.head_dim) *
                        static_cast<double>(SizeOf(act));
  const double width = Real(plan.LocalHeads(config.attention.num_heads) * config.attention.head_dim);
  const double rows = Real(step.rows), end = Real(step.context) + rows;
  cost.cache_bytes += Real(step.num_sequences) * 2 * end * kv_row;
  cost.attention_flops += Real(step.num_sequences) * 4 * width * rows * (end - (rows - 1) / 2);
}

void AddDeltaNet(const ModelConfig& config, const ShardPlan& plan, DType act, const StepShape& step, StepCost& cost) {
  const GatedDeltaNetConfig& net = config.delta_net;
  const double key_width = Real(plan.LocalHeads(net.num_key_heads) * net.key_dim);
  const double value_heads = Real(plan.LocalHeads(net.num_value_heads));
  const double value_width = value_heads * Real(net.value_dim), channels = 2 * key_width + value_width;
  const double state = value_width * Real(net.key_dim);
  const double rows = Real(step.num_sequences * step.rows);
  const double earlier = step.prompt ? (kChunkTokens + 1) / 2.0 : 0;  // rows of its chunk that a row meets, on average
  cost.cache_bytes += Real(step.num_sequences) * 2 *
                      (state * sizeof(float) + channels * Real(net.conv_width - 1) * static_cast<double>(SizeOf(act)));
  cost.delta_net_flops += rows * (6 * state + 4 * earlier * (key_width + value_width) + 2 * Real(net.conv_width) * channels);
}

}  // namespace

StepCost CostOfStep(const ModelConfig& config, const ShardPlan& plan, int stage, DType act, const StepShape& step) {
  StepCost cost;
  const int tp = plan.mesh().tp, rank = stage * tp;
  const double rows = Real(step.num_sequences * step.rows), sequences = Real(step.num_sequences);
  const double chosen = config.moe.num_experts == 0
                            ? 0 : Real(config.moe.experts_per_token) / Real(config.moe.num_experts);
  for (const TensorPlan& tensor : plan.tensors()) {
    if (!IsLinear(config, tensor) || !plan.Holds(tensor, rank)) continue;
    if (IsHead(tensor) && stage != plan.mesh().pp - 1) continue;
    const bool is_expert = IsExpert(tensor);
    const double these_rows = IsOfWantedRows(config, tensor) ? sequences : rows;
    const TensorSlice slice = plan.SliceOf(tensor.name, rank);
    const double elements = Real(slice.num_rows()) * Real(slice.num_columns);
    const double read = is_expert ? ShareOfExperts(config.moe, these_rows) : 1;
    cost.weight_bytes += elements * static_cast<double>(SizeOf(act)) * read;
    cost.linear_flops += 2 * elements * these_rows * (is_expert ? chosen : 1);
  }
  const StageRange layers = plan.LayersOf(stage);
  if (!step.prompt) cost.generated_rows = rows * Real(layers.last - layers.first);
  double exchanged_rows = 0;  // of all exchanges, twice a layer: partial sums out, norms back
  for (int64_t layer = layers.first; layer < layers.last; ++layer) {
    const bool is_last = layer + 1 == config.num_layers();
    const bool is_attention = config.layers[layer].mixer == MixerKind::kAttention;
    exchanged_rows += (is_last && is_attention ? sequences : rows) + (is_last ? sequences : rows);
    if (!is_attention) {
      AddDeltaNet(config, plan, act, step, cost);
    } else if (!is_last) {
      AddAttention(config, plan, act, step, cost);
    } else {
      StepShape wanted = step;
      wanted.rows = 1;
      wanted.context = step.context + step.rows - 1;
      AddAttention(config, plan, act, wanted, cost);
    }
  }
  if (tp > 1) {
    cost.num_exchanges = static_cast<int>(4 * (layers.last - layers.first));
    const double element_bytes = static_cast<double>(sizeof(float) + SizeOf(act));
    cost.exchange_bytes = exchanged_rows * Real(config.hidden) * element_bytes * (tp - 1) / tp;
  }
  return cost;
}

double StepSeconds(const ModelConfig& config, const ShardPlan& plan, DType act, const DeviceSpeed& device,
                   const StepShape& step) {
  double seconds = 0;
  for (int stage = 0; stage < plan.mesh().pp; ++stage) {
    const StepCost cost = CostOfStep(config, plan, stage, act, step);
    seconds += std::max(cost.weight_bytes / device.bytes_per_second, cost.linear_flops / device.linear_flops_per_second);
    seconds += std::max(cost.cache_bytes / device.bytes_per_second,
                        cost.attention_flops / device.attention_flops_per_second +
                            cost.delta_net_flops / device.delta_net_flops_per_second);
    seconds += cost.generated_rows * device.generated_row_seconds;
    seconds += cost.num_exchanges * device.exchange_seconds;
    if (cost.exchange_bytes > 0) seconds += cost.exchange_bytes / device.link_bytes_per_second;
  }
  return seconds;
}

}  // namespace plumbline
