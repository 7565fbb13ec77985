#include "parallel/model_config.h"

#include <algorithm>
#include <bit>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "parallel/json_reader.h"
#include "parallel/rope.h"
#include "proto/status.h"

namespace plumbline {
namespace {

constexpr int64_t kMaxConfigBytes = int64_t{16} << 20;
constexpr IntRange kWidths = {1, int64_t{1} << 22};
constexpr IntRange kCounts = {1, 4096};
constexpr IntRange kPositions = {1, int64_t{1} << 28};
constexpr IntRange kTokens = {0, INT32_MAX};

// What the architectures differ in beyond the keys of their files.
struct Family {
  const char* model_type;    // of the text model
  const char* wrapper_type;  // of a file that nests the text model in text_config; "" = none
  bool qkv_bias = false;
  bool qk_norm = false;
  bool hybrid = false;               // gated delta net layers, output gate, zero-centred norms
  const char* expert_ffn = nullptr;  // key of an expert's width; nullptr = no experts
  double theta = 10000;
  int64_t head_dim = 0;  // when the file has none; 0 = hidden / heads
};

constexpr Family kFamilies[] = {
    {.model_type = "qwen2", .wrapper_type = "", .qkv_bias = true},
    {.model_type = "qwen3", .wrapper_type = "", .qk_norm = true, .head_dim = 128},
    {.model_type = "qwen3_5_text",
     .wrapper_type = "qwen3_5",
     .qk_norm = true,
     .hybrid = true,
     .head_dim = 256},
    {.model_type = "llama", .wrapper_type = ""},
    {.model_type = "mistral", .wrapper_type = ""},
    {.model_type = "mixtral", .wrapper_type = "", .expert_ffn = "intermediate_size", .theta = 1e6},
    {.model_type = "qwen3_moe",
     .wrapper_type = "",
     .qk_norm = true,
     .expert_ffn = "moe_intermediate_size"},
};

const Family* FindFamily(const std::string& model_type) {
  for (const Family& family : kFamilies) {
    if (model_type == family.model_type ||
        (*family.wrapper_type && model_type == family.wrapper_type)) {
      return &family;
    }
  }
  return nullptr;
}

std::string SupportedTypes() {
  return absl::StrJoin(kFamilies, ", ", [](std::string* out, const Family& family) {
    absl::StrAppend(out, family.model_type);
  });
}

DType ReadDType(const JsonReader& text, const JsonReader& root) {
  // Released files say torch_dtype, newer ones dtype, in the text part or at the top. Files that
  // say nothing hold bf16.
  std::string name;
  const char* found = "dtype";
  for (const JsonReader& reader : {root, text}) {
    for (const char* key : {"torch_dtype", "dtype"}) {
      if (!reader.Has(key)) continue;
      name = reader.StringOr(key, "");
      found = key;
    }
  }
  if (name == "float16") return DType::kF16;
  if (name == "float32") return DType::kF32;
  if (!name.empty() && name != "bfloat16") {
    text.Unsupported(found,
                     absl::StrCat("is ", name, "; bfloat16, float16 and float32 are supported"));
  }
  return DType::kBf16;
}

// Keys that change the graph in ways no backend computes.
void RejectUnsupported(const Family& family, const JsonReader& text, const JsonReader& root) {
  for (const JsonReader& reader : {root, text}) {
    if (reader.Has("quantization_config")) {
      reader.Unsupported("quantization_config", "is set: quantized checkpoints are not supported");
    }
  }
  for (const char* key : {"hidden_act", "hidden_activation"}) {
    const std::string activation = text.StringOr(key, "silu");
    if (activation != "silu") {
      text.Unsupported(key, absl::StrCat("is ", activation, "; silu is supported"));
    }
  }
  for (const char* key : {"attention_bias", "mlp_bias"}) {
    if (text.BoolOr(key, false)) text.Unsupported(key, "is true: such biases are not supported");
  }
  if (family.hybrid) {
    const std::string dtype = text.StringOr("mamba_ssm_dtype", "float32");
    if (dtype != "float32") {
      text.Unsupported("mamba_ssm_dtype", absl::StrCat("is ", dtype, "; float32 is supported"));
    }
  }
}

// A sliding window that covers every position, or no layer, changes nothing.
void RejectSlidingWindow(const Family& family, const JsonReader& text, const ModelConfig& config,
                         int64_t num_layers) {
  const std::string type = family.model_type;
  const bool has_switch = type == "qwen2" || type == "qwen3" || type == "qwen3_moe";
  if (has_switch && !text.BoolOr("use_sliding_window", false)) return;
  if (has_switch && type != "qwen3_moe" &&
      text.IntOr("max_window_layers", 28, {0, kPositions.max}) >= num_layers) {
    return;
  }
  if (text.Has("sliding_window") &&
      text.Int("sliding_window", {1, int64_t{1} << 40}) < config.max_positions) {
    text.Unsupported("sliding_window", "is in use: attention over a window is not supported");
  }
}

void ReadAttention(const Family& family, const JsonReader& text, ModelConfig& config) {
  AttentionConfig& attention = config.attention;
  attention.num_heads = text.Int("num_attention_heads", kCounts);
  attention.num_kv_heads = text.IntOr("num_key_value_heads", attention.num_heads, kCounts);
  attention.qkv_bias = family.qkv_bias;
  attention.qk_norm = family.qk_norm;
  attention.output_gate = family.hybrid && text.BoolOr("attn_output_gate", true);
  if (attention.num_heads % attention.num_kv_heads != 0) {
    text.Invalid("num_key_value_heads",
                 absl::StrCat("is ", attention.num_kv_heads, ", which does not divide ",
                              attention.num_heads, " heads"));
  }
  const bool derived = !text.Has("head_dim") && family.head_dim == 0;
  if (derived && config.hidden % attention.num_heads != 0) {
    text.Invalid("head_dim",
                 "is missing, and hidden_size is not a multiple of num_attention_heads");
  }
  const int64_t fallback = derived ? config.hidden / attention.num_heads : family.head_dim;
  attention.head_dim = text.IntOr("head_dim", fallback, {2, 4096});
  if (attention.head_dim < 2 || attention.head_dim % 2 != 0) {
    text.Invalid("head_dim",
                 absl::StrCat("is ", attention.head_dim, "; an even number is expected"));
  }
}

void ReadDeltaNet(const JsonReader& text, ModelConfig& config) {
  GatedDeltaNetConfig& net = config.delta_net;
  net.num_key_heads = text.IntOr("linear_num_key_heads", 16, kCounts);
  net.num_value_heads = text.IntOr("linear_num_value_heads", 32, kCounts);
  net.key_dim = text.IntOr("linear_key_head_dim", 128, kCounts);
  net.value_dim = text.IntOr("linear_value_head_dim", 128, kCounts);
  net.conv_width = text.IntOr("linear_conv_kernel_dim", 4, {2, 16});
  if (net.num_value_heads % net.num_key_heads != 0) {
    text.Invalid("linear_num_value_heads", "is not a multiple of linear_num_key_heads");
  }
  const std::string gate = text.StringOr("output_gate_type", "swish");
  net.sigmoid_gate = gate == "sigmoid";
  if (gate != "sigmoid" && gate != "swish" && gate != "silu") {
    text.Unsupported("output_gate_type",
                     absl::StrCat("is ", gate, "; swish and sigmoid are supported"));
  }
}

MixerKind ReadMixer(const Family& family, const JsonReader& text, const std::string& name) {
  if (family.hybrid && name == "linear_attention") return MixerKind::kGatedDeltaNet;
  if (name != "full_attention") {
    text.Unsupported("layer_types", absl::StrCat("names ", name, ", which is not supported"));
  }
  return MixerKind::kAttention;
}

void ReadMixers(const Family& family, const JsonReader& text, ModelConfig& config) {
  const int64_t num_layers = config.num_layers();
  if (text.Has("layer_types")) {
    const std::vector<std::string> types = text.Strings("layer_types");
    if (static_cast<int64_t>(types.size()) != num_layers) {
      text.Invalid("layer_types",
                   absl::StrCat("has ", types.size(), " entries for ", num_layers, " layers"));
      return;
    }
    for (int64_t i = 0; i < num_layers; ++i)
      config.layers[i].mixer = ReadMixer(family, text, types[i]);
  } else if (family.hybrid) {
    const int64_t interval = text.IntOr("full_attention_interval", 4, kCounts);
    for (int64_t i = 0; i < num_layers; ++i) {
      if ((i + 1) % interval != 0) config.layers[i].mixer = MixerKind::kGatedDeltaNet;
    }
  }
}

void ReadFeedForward(const Family& family, const JsonReader& text, ModelConfig& config) {
  const std::string type = family.model_type;
  const int64_t num_layers = config.num_layers();
  const std::vector<int64_t> dense = text.Ints("mlp_only_layers", {0, kCounts.max});
  const int64_t step = text.IntOr("decoder_sparse_step", 1, kCounts);
  for (int64_t i = 0; i < num_layers; ++i) {
    LayerConfig& layer = config.layers[i];
    layer.moe = family.expert_ffn != nullptr;
    if (type == "qwen3_moe") {
      layer.moe = (i + 1) % step == 0 && std::find(dense.begin(), dense.end(), i) == dense.end();
    }
    layer.ffn = text.Int(layer.moe ? family.expert_ffn : "intermediate_size", kWidths);
  }
  if (family.expert_ffn == nullptr) return;
  // transformers 5 writes num_local_experts for every family.
  const char* key = text.Has("num_experts") ? "num_experts" : "num_local_experts";
  config.moe.num_experts = text.Int(key, kCounts);
  config.moe.experts_per_token = text.Int("num_experts_per_tok", {1, config.moe.num_experts});
  config.moe.renormalize = type == "mixtral" || text.BoolOr("norm_topk_prob", false);
}

void AddEosIds(const std::vector<int64_t>& ids, std::vector<int32_t>& eos) {
  for (int64_t id : ids) {
    const int32_t token = static_cast<int32_t>(id);
    if (std::find(eos.begin(), eos.end(), token) == eos.end()) eos.push_back(token);
  }
}

ModelConfig ReadConfig(const Family& family, const JsonReader& text, const JsonReader& root) {
  ModelConfig config;
  config.model_type = family.model_type;
  config.hidden = text.Int("hidden_size", kWidths);
  config.vocab = text.Int("vocab_size", {1, int64_t{1} << 24});
  config.max_positions = text.Int("max_position_embeddings", kPositions);
  config.norm_eps = static_cast<float>(text.Positive("rms_norm_eps"));
  config.norm_offset = family.hybrid ? 1 : 0;
  // The outer model owns the head, so its word counts.
  config.tied_head = root.BoolOr("tie_word_embeddings", text.BoolOr("tie_word_embeddings", false));
  config.dtype = ReadDType(text, root);
  AddEosIds(text.Ints("eos_token_id", {0, config.vocab - 1}), config.eos_token_ids);
  AddEosIds(root.Ints("eos_token_id", {0, config.vocab - 1}), config.eos_token_ids);
  config.layers.resize(text.Int("num_hidden_layers", {1, 1024}));
  RejectUnsupported(family, text, root);
  RejectSlidingWindow(family, text, config, config.num_layers());
  ReadAttention(family, text, config);
  if (family.hybrid) ReadDeltaNet(text, config);
  ReadMixers(family, text, config);
  ReadFeedForward(family, text, config);
  const RopeAndPositions rope = ReadRope(text, {.head_dim = config.attention.head_dim,
                                                .max_positions = config.max_positions,
                                                .default_theta = family.theta,
                                                .default_rotary_part = family.hybrid ? 0.25 : 1});
  config.rope = rope.rope;
  config.max_positions = rope.max_positions;
  return config;
}

absl::Status Prefixed(const absl::Status& status, const std::string& what) {
  return absl::Status(status.code(), absl::StrCat(what, ": ", status.message()));
}

absl::StatusOr<ModelConfig> ParseNamed(std::string_view json, const std::string& what) {
  PL_ASSIGN_OR_RETURN(const nlohmann::json object, ParseJsonObject(json, what));
  absl::Status first_error;
  const JsonReader root(&object, "", &first_error);
  const std::string model_type = root.StringOr("model_type", "");
  const Family* family = FindFamily(model_type);
  if (family == nullptr) {
    return absl::UnimplementedError(absl::StrCat(what, ": model_type '", model_type,
                                                 "' is not supported; supported are ",
                                                 SupportedTypes()));
  }
  const JsonReader text = root.Has("text_config") ? root.Object("text_config") : root;
  ModelConfig config = ReadConfig(*family, text, root);
  if (!first_error.ok()) return Prefixed(first_error, what);
  return config;
}

// Appends the bytes of numbers and strings to a text that is then hashed.
class FieldHash {
 public:
  template <typename T>
  FieldHash& Add(T value) {
    for (int i = 0; i < 8; ++i) AddByte(static_cast<uint64_t>(value) >> (8 * i));
    return *this;
  }
  FieldHash& AddFloat(float value) { return Add(std::bit_cast<uint32_t>(value)); }
  FieldHash& AddText(std::string_view text) {
    Add(text.size());
    for (char c : text) AddByte(static_cast<uint8_t>(c));
    return *this;
  }
  uint64_t value() const { return hash_; }

 private:
  void AddByte(uint64_t byte) { hash_ = (hash_ ^ (byte & 255)) * 0x100000001b3u; }  // FNV-1a
  uint64_t hash_ = 0xcbf29ce484222325u;
};

}  // namespace

int64_t ModelConfig::num_layers_of(MixerKind kind) const {
  return std::count_if(layers.begin(), layers.end(),
                       [kind](const LayerConfig& layer) { return layer.mixer == kind; });
}

std::string ModelConfig::Fingerprint() const {
  FieldHash hash;
  hash.AddText(model_type).Add(hidden).Add(vocab).Add(max_positions);
  hash.AddFloat(norm_eps).AddFloat(norm_offset).Add(tied_head).Add(static_cast<int>(dtype));
  hash.Add(rope.rotary_dim).AddFloat(rope.attention_factor).Add(rope.inv_freq.size());
  for (float frequency : rope.inv_freq) hash.AddFloat(frequency);
  hash.Add(attention.num_heads).Add(attention.num_kv_heads).Add(attention.head_dim);
  hash.Add(attention.qkv_bias).Add(attention.qk_norm).Add(attention.output_gate);
  hash.Add(delta_net.num_key_heads).Add(delta_net.num_value_heads).Add(delta_net.key_dim);
  hash.Add(delta_net.value_dim).Add(delta_net.conv_width).Add(delta_net.sigmoid_gate);
  hash.Add(moe.num_experts).Add(moe.experts_per_token).Add(moe.renormalize).Add(layers.size());
  for (const LayerConfig& layer : layers) {
    hash.Add(static_cast<int>(layer.mixer)).Add(layer.moe).Add(layer.ffn);
  }
  return absl::StrCat(absl::Hex(hash.value(), absl::kZeroPad16));
}

absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view json) {
  return ParseNamed(json, "config.json");
}

absl::StatusOr<ModelConfig> ReadModelConfig(const std::string& model_dir) {
  const std::string path = absl::StrCat(model_dir, "/config.json");
  PL_ASSIGN_OR_RETURN(const std::string text, ReadTextFile(path, kMaxConfigBytes));
  PL_ASSIGN_OR_RETURN(ModelConfig config, ParseNamed(text, path));

  const std::string generation_path = absl::StrCat(model_dir, "/generation_config.json");
  absl::StatusOr<std::string> generation_text = ReadTextFile(generation_path, kMaxConfigBytes);
  if (absl::IsNotFound(generation_text.status())) return config;
  PL_RETURN_IF_ERROR(generation_text.status());
  PL_ASSIGN_OR_RETURN(const nlohmann::json object,
                      ParseJsonObject(*generation_text, generation_path));
  absl::Status first_error;
  const JsonReader generation(&object, "", &first_error);
  AddEosIds(generation.Ints("eos_token_id", {0, config.vocab - 1}), config.eos_token_ids);
  if (!first_error.ok()) return Prefixed(first_error, generation_path);
  return config;
}

ModelConfig WithLayers(ModelConfig config, int64_t num_layers) {
  PL_CHECK(num_layers >= 1 && num_layers <= config.num_layers());
  config.layers.resize(num_layers);
  return config;
}

}  // namespace plumbline
