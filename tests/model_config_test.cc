// Configurations: both file layouts mean the same model, released ones give the published sizes,
// and everything that is wrong or unsupported is named.
#include "parallel/model_config.h"

#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "parallel/json_reader.h"

namespace plumbline {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

const std::string kGolden = std::string(PLUMBLINE_SOURCE_DIR) + "/tests/golden/";

json Load(const std::string& path) {
  return json::parse(ReadTextFile(kGolden + path, 1 << 20).value());
}

ModelConfig Parse(const std::string& path) {
  const absl::StatusOr<ModelConfig> config = ParseModelConfig(Load(path).dump());
  EXPECT_TRUE(config.ok()) << path << ": " << config.status();
  return config.value();
}

TEST(ModelConfigTest, LayoutsOfTransformers4And5AreTheSameModel) {
  for (const char* name : {"qwen2_tied", "qwen3", "llama3", "mixtral", "qwen3_moe"}) {
    const std::string dir = std::string(name) + "/";
    const ModelConfig v5 = Parse(dir + "config.json"), v4 = Parse(dir + "config.v4.json");
    EXPECT_EQ(v5.Fingerprint(), v4.Fingerprint()) << name;
    EXPECT_EQ(v5.rope.inv_freq, v4.rope.inv_freq) << name;
    EXPECT_EQ(v5.eos_token_ids, v4.eos_token_ids) << name;
  }
}

TEST(ModelConfigTest, EveryFieldThatChangesResultsChangesTheFingerprint) {
  const ModelConfig base = Parse("qwen35_vl/config.json");
  const std::vector<std::function<void(ModelConfig&)>> changes = {
      [](ModelConfig& c) { c.norm_eps *= 2; },
      [](ModelConfig& c) { c.norm_offset = 0; },
      [](ModelConfig& c) { c.dtype = DType::kF16; },
      [](ModelConfig& c) { c.tied_head = true; },
      [](ModelConfig& c) { c.rope.inv_freq[1] *= 2; },
      [](ModelConfig& c) { c.rope.attention_factor = 2; },
      [](ModelConfig& c) { c.attention.qk_norm = false; },
      [](ModelConfig& c) { c.attention.output_gate = false; },
      [](ModelConfig& c) { c.delta_net.sigmoid_gate = true; },
      [](ModelConfig& c) { c.layers.pop_back(); },
      [](ModelConfig& c) { c.moe.renormalize = true; },
      [](ModelConfig& c) { std::swap(c.layers[2], c.layers[3]); },
  };
  for (size_t i = 0; i < changes.size(); ++i) {
    ModelConfig changed = base;
    changes[i](changed);
    EXPECT_NE(changed.Fingerprint(), base.Fingerprint()) << "change " << i;
  }
  EXPECT_EQ(ModelConfig(base).Fingerprint(), base.Fingerprint());
}

TEST(ModelConfigTest, ReadsTheNestedTextPartOfQwen36) {
  const ModelConfig config = Parse("configs/qwen3.6-27b.json");
  EXPECT_EQ(config.model_type, "qwen3_5_text");
  EXPECT_EQ(config.hidden, 5120);
  EXPECT_EQ(config.vocab, 248320);
  EXPECT_EQ(config.norm_offset, 1);
  EXPECT_FALSE(config.tied_head);
  EXPECT_EQ(config.num_layers_of(MixerKind::kGatedDeltaNet), 48);
  EXPECT_EQ(config.num_layers_of(MixerKind::kAttention), 16);
  EXPECT_EQ(config.layers[3].mixer, MixerKind::kAttention);
  EXPECT_EQ(config.layers[63].mixer, MixerKind::kAttention);
  EXPECT_TRUE(config.attention.output_gate);
  EXPECT_TRUE(config.attention.qk_norm);
  EXPECT_FALSE(config.attention.qkv_bias);
  EXPECT_EQ(config.delta_net.conv_channels(), 10240);
  EXPECT_FALSE(config.delta_net.sigmoid_gate);
  EXPECT_EQ(config.rope.rotary_dim, 64);
  EXPECT_THAT(config.eos_token_ids, ElementsAre(248044));
  EXPECT_EQ(WithLayers(config, 5).num_layers(), 5);
}

TEST(ModelConfigTest, LayerTypesOutrankTheInterval) {
  json file = Load("qwen35_text/config.json");
  file["full_attention_interval"] = 2;
  file["layer_types"][0] = "full_attention";
  const ModelConfig config = ParseModelConfig(file.dump()).value();
  EXPECT_EQ(config.layers[0].mixer, MixerKind::kAttention);
  EXPECT_EQ(config.layers[1].mixer, MixerKind::kGatedDeltaNet);
  file.erase("layer_types");
  EXPECT_EQ(ParseModelConfig(file.dump())->layers[1].mixer, MixerKind::kAttention);
}

TEST(ModelConfigTest, DenseLayersAmongExperts) {
  const ModelConfig config = Parse("qwen3_moe/config.json");
  EXPECT_TRUE(config.layers[0].moe);
  EXPECT_EQ(config.layers[0].ffn, 64);
  EXPECT_FALSE(config.layers[1].moe);
  EXPECT_EQ(config.layers[1].ffn, 96);
  EXPECT_TRUE(config.moe.renormalize);
  EXPECT_EQ(config.moe.num_experts, 8);
  EXPECT_EQ(config.moe.experts_per_token, 3);
}

// ---- rotary frequencies: values of transformers 5.23's modeling_rope_utils, evaluated in f64

struct RopeCase {
  const char* name;
  const char* base;  // configuration that is changed
  json scaling;
  int64_t head_dim;
  double attention_factor;
  std::vector<std::pair<int, double>> inv_freq;
};

TEST(ModelConfigTest, ScaledRotaryFrequenciesAreThoseOfTransformers) {
  const std::vector<RopeCase> cases = {
      {"llama3",
       "llama3/config.json",
       {{"rope_type", "llama3"},
        {"rope_theta", 500000.0},
        {"factor", 8.0},
        {"low_freq_factor", 1.0},
        {"high_freq_factor", 4.0},
        {"original_max_position_embeddings", 8192}},
       128,
       1.0,
       {{0, 1},
        {1, 0.814617234},
        {16, 0.0376060309},
        {32, 0.000524846161},
        {35, 9.55621235e-05},
        {48, 6.64786987e-06},
        {63, 3.06892599e-07}}},
      {"yarn, partial rotation",
       "qwen35_text/config.json",
       {{"rope_type", "yarn"},
        {"rope_theta", 1e7},
        {"partial_rotary_factor", 0.25},
        {"factor", 4.0},
        {"original_max_position_embeddings", 262144}},
       256,
       1.138629436111989,
       {{0, 1},
        {1, 0.60429639},
        {8, 0.0177827941},
        {16, 0.00025693506},
        {19, 3.70722498e-05},
        {24, 1.40585331e-06},
        {31, 4.13704275e-08}}},
      {"yarn",
       "qwen3/config.json",
       {{"rope_type", "yarn"},
        {"rope_theta", 1e6},
        {"factor", 4.0},
        {"original_max_position_embeddings", 32768}},
       128,
       1.138629436111989,
       {{0, 1},
        {1, 0.805842188},
        {16, 0.0316227766},
        {32, 0.000602941176},
        {35, 0.000246258407},
        {48, 7.90569415e-06},
        {63, 3.1023444e-07}}},
      {"yarn, mscale, not truncated",
       "qwen3/config.json",
       {{"rope_type", "yarn"},
        {"rope_theta", 1e4},
        {"factor", 40.0},
        {"mscale", 1.0},
        {"mscale_all_dim", 0.707},
        {"truncate", false},
        {"original_max_position_embeddings", 4096}},
       64,
       1.0857263992561355,
       {{0, 1},
        {1, 0.749894209},
        {8, 0.1},
        {16, 0.00552406298},
        {19, 0.0013051098},
        {24, 2.5e-05},
        {31, 3.33380358e-06}}},
      {"linear",
       "qwen3/config.json",
       {{"rope_type", "linear"}, {"rope_theta", 1e4}, {"factor", 4.0}},
       16,
       1.0,
       {{0, 0.25}, {1, 0.0790569415}, {4, 0.0025}, {7, 7.90569415e-05}}},
  };
  for (const RopeCase& test : cases) {
    json v5 = Load(test.base);
    v5["rope_parameters"] = test.scaling;
    v5["head_dim"] = test.head_dim;
    json v4 = v5;  // the same in the older layout
    v4["rope_scaling"] = test.scaling;
    v4["rope_theta"] = test.scaling["rope_theta"];
    v4["rope_scaling"].erase("rope_theta");
    v4["rope_scaling"]["type"] = test.scaling["rope_type"];
    v4["rope_scaling"].erase("rope_type");
    v4.erase("rope_parameters");
    for (const json& file : {v5, v4}) {
      const absl::StatusOr<ModelConfig> config = ParseModelConfig(file.dump());
      ASSERT_TRUE(config.ok()) << test.name << ": " << config.status();
      EXPECT_FLOAT_EQ(config->rope.attention_factor, test.attention_factor) << test.name;
      for (const auto& [i, expected] : test.inv_freq) {
        // Nine digits of the table, then one rounding to f32.
        EXPECT_NEAR(config->rope.inv_freq[i], expected, 1e-7 * expected) << test.name << " " << i;
      }
    }
  }
}

TEST(ModelConfigTest, YarnStretchesThePositions) {
  json file = Load("configs/qwen3.6-27b.json");
  EXPECT_EQ(ParseModelConfig(file.dump())->max_positions, 262144);
  json& rope = file["text_config"]["rope_parameters"];
  rope["rope_type"] = "yarn";
  rope["factor"] = 4.0;
  rope["original_max_position_embeddings"] = 262144;
  EXPECT_EQ(ParseModelConfig(file.dump())->max_positions, 1048576);
}

// ---- what is refused -----------------------------------------------------------------------

struct RefusedCase {
  const char* base;
  const char* pointer;
  json value;  // discarded: the key is removed
  absl::StatusCode code;
  const char* named;
};

TEST(ModelConfigTest, WrongAndUnsupportedKeysAreNamed) {
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument,
                 kUnsupported = absl::StatusCode::kUnimplemented;
  const json removed(json::value_t::discarded);
  const std::vector<RefusedCase> cases = {
      {"llama3/config.json", "/hidden_size", removed, kInvalid, "hidden_size"},
      {"llama3/config.json", "/hidden_size", -1, kInvalid, "hidden_size"},
      {"llama3/config.json", "/hidden_size", "128", kInvalid, "hidden_size"},
      {"llama3/config.json", "/hidden_size", 128.0, kInvalid, "hidden_size"},
      {"llama3/config.json", "/vocab_size", 1e30, kInvalid, "vocab_size"},
      {"llama3/config.json", "/vocab_size", UINT64_MAX, kInvalid, "vocab_size"},
      {"llama3/config.json", "/num_hidden_layers", 1000000000, kInvalid, "num_hidden_layers"},
      {"llama3/config.json", "/num_key_value_heads", 3, kInvalid, "num_key_value_heads"},
      {"llama3/config.json", "/num_attention_heads", 0, kInvalid, "num_attention_heads"},
      {"llama3/config.json", "/head_dim", 15, kInvalid, "head_dim"},
      {"llama3/config.json", "/rms_norm_eps", 0, kInvalid, "rms_norm_eps"},
      {"llama3/config.json", "/eos_token_id", 320, kInvalid, "eos_token_id"},
      {"llama3/config.json", "/rope_parameters/factor", -8, kInvalid, "rope_parameters.factor"},
      {"llama3/config.json", "/rope_parameters/high_freq_factor", 1, kInvalid, "high_freq_factor"},
      {"llama3/config.json", "/rope_parameters/rope_type", "dynamic", kUnsupported, "rope_type"},
      {"llama3/config.json", "/attention_bias", true, kUnsupported, "attention_bias"},
      {"llama3/config.json", "/mlp_bias", true, kUnsupported, "mlp_bias"},
      {"llama3/config.json", "/hidden_act", "gelu", kUnsupported, "hidden_act"},
      {"llama3/config.json", "/quantization_config", json{{"quant_method", "fp8"}}, kUnsupported,
       "quantization_config"},
      {"llama3/config.json", "/dtype", "float8", kUnsupported, "dtype"},
      {"llama3/config.json", "/model_type", "gpt2", kUnsupported, "gpt2"},
      {"llama3/config.json", "/model_type", "mistral", absl::StatusCode::kOk, ""},
      {"mixtral/config.json", "/sliding_window", 128, kUnsupported, "sliding_window"},
      {"mixtral/config.json", "/sliding_window", 512, absl::StatusCode::kOk, ""},
      {"mixtral/config.json", "/num_experts_per_tok", 9, kInvalid, "num_experts_per_tok"},
      {"qwen3/config.json", "/layer_types/1", "sliding_attention", kUnsupported, "layer_types"},
      {"qwen3/config.json", "/layer_types", json::array({"full_attention"}), kInvalid,
       "layer_types"},
      {"qwen35_vl/config.json", "/model_type", "qwen3_5_moe", kUnsupported, "qwen3_5_moe"},
      {"qwen35_vl/config.json", "/text_config", removed, kInvalid, "hidden_size"},
      {"qwen35_vl/config.json", "/text_config/linear_num_value_heads", 12, kInvalid,
       "text_config.linear_num_value_heads"},
      {"qwen35_vl/config.json", "/text_config/output_gate_type", "tanh", kUnsupported,
       "output_gate_type"},
      {"qwen35_vl/config.json", "/text_config/mamba_ssm_dtype", "bfloat16", kUnsupported,
       "mamba_ssm_dtype"},
      {"qwen35_vl/config.json", "/text_config/rope_parameters/partial_rotary_factor", 0.3,
       absl::StatusCode::kOk, ""},
      {"qwen35_vl/config.json", "/text_config/rope_parameters/partial_rotary_factor", 0.2, kInvalid,
       "partial_rotary_factor"},
      {"qwen35_vl/config.json", "/text_config/rope_parameters/partial_rotary_factor", 1e300,
       kInvalid, "partial_rotary_factor"},
  };
  for (const RefusedCase& test : cases) {
    json file = Load(test.base);
    const json::json_pointer pointer(test.pointer);
    if (test.value.is_discarded()) {
      file.erase(pointer.back());
    } else {
      file[pointer] = test.value;
    }
    const absl::Status status = ParseModelConfig(file.dump()).status();
    EXPECT_EQ(status.code(), test.code) << test.pointer << " " << test.value << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(test.named));
  }
}

TEST(ModelConfigTest, TextThatIsNoConfigurationIsRefused) {
  for (const std::string& text :
       {std::string(), std::string("{"), std::string("[1]"), std::string("{}"),
        std::string(1 << 20, '['), "{\"a\":" + std::string(100, '{'), std::string("\"\\")}) {
    EXPECT_FALSE(ParseModelConfig(text).ok()) << text.substr(0, 20);
  }
}

TEST(ModelConfigTest, GenerationConfigAddsEndTokens) {
  const ModelConfig config =
      ReadModelConfig(std::string(PLUMBLINE_SOURCE_DIR) + "/deploy/demo_model/model").value();
  EXPECT_THAT(config.eos_token_ids, ElementsAre(2043, 2041));
  const absl::Status missing = ReadModelConfig("no/such/folder").status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.message()), HasSubstr("no/such/folder/config.json"));
}

}  // namespace
}  // namespace plumbline
