// ModelConfig: what a checkpoint's config.json says about the graph, with one LayerConfig per layer. Immutable plain data;
// every architecture reads into the same struct. Facts and sources: DESIGN.md, "Models".
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/tensor.h"

namespace plumbline {

struct AttentionConfig {
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  bool qkv_bias = false;     // Qwen2
  bool qk_norm = false;      // Qwen3, Qwen3.5
  bool output_gate = false;  // Qwen3.5: q_proj rows are per head query | gate
};

struct GatedDeltaNetConfig {
  int64_t num_key_heads = 0;
  int64_t num_value_heads = 0;
  int64_t key_dim = 0;    // per head
  int64_t value_dim = 0;  // per head
  int64_t conv_width = 0;
  bool sigmoid_gate = false;  // output_gate_type; silu otherwise

  int64_t conv_channels() const { return 2 * num_key_heads * key_dim + num_value_heads * value_dim; }
};

struct MoeConfig {
  int64_t num_experts = 0;
  int64_t experts_per_token = 0;
  bool renormalize = false;
};

enum class MixerKind : uint8_t { kAttention, kGatedDeltaNet };

struct LayerConfig {
  MixerKind mixer = MixerKind::kAttention;
  bool moe = false;      // else a dense SwiGLU
  int64_t ffn = 0;       // F: of the dense MLP, or of one expert
};

struct RopeConfig {
  int64_t rotary_dim = 0;
  std::vector<float> inv_freq;  // [rotary_dim / 2]: computed in f64 from theta and the scaling, rounded once
  float attention_factor = 1;   // scales cos and sin (YaRN)
};

struct ModelConfig {
  std::string model_type;  // of the text model: qwen2, qwen3, qwen3_5_text, llama, mistral, mixtral, qwen3_moe
  int64_t hidden = 0;
  int64_t vocab = 0;
  int64_t max_positions = 0;
  float norm_eps = 0;
  float norm_offset = 0;   // 1 for zero-centred norm weights
  bool tied_head = false;
  DType dtype = DType::kBf16;  // as stored: bf16, f16 or f32
  std::vector<int32_t> eos_token_ids;
  RopeConfig rope;
  AttentionConfig attention;      // of every attention layer
  GatedDeltaNetConfig delta_net;  // of every gated-delta-net layer
  MoeConfig moe;                  // of every MoE layer
  std::vector<LayerConfig> layers;

  int64_t num_layers() const { return static_cast<int64_t>(layers.size()); }
  int64_t num_layers_of(MixerKind kind) const;
  // A hash of every field that changes results; equal on all ranks or Configure fails.
  std::string Fingerprint() const;
};

// Reads both layouts (transformers 4 and 5), nested text_config included. INVALID_ARGUMENT names the key that is
// missing, of the wrong type or out of range; UNIMPLEMENTED names an architecture or feature that is not supported.
absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view json);
// From its config.json, and generation_config.json's eos ids.
absl::StatusOr<ModelConfig> ReadModelConfig(const std::string& model_dir);

// The first num_layers layers of the model: --layers N.
ModelConfig WithLayers(ModelConfig config, int64_t num_layers);

}  // namespace plumbline
