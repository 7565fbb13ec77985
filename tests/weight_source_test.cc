// Where weights come from: real checkpoints are read as Python reads them, every way a file can lie
// is named, and made-up weights depend on nothing but seed, name and place.
#include "worker/weight_source.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/half.h"
#include "nlohmann/json.hpp"
#include "parallel/json_reader.h"
#include "worker/safetensors.h"

namespace plumbline {
namespace {

using nlohmann::json;
using ::testing::Contains;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

const std::string kGolden = absl::StrCat(PLUMBLINE_SOURCE_DIR, "/tests/golden/");

std::string ReadAll(const std::string& path) {
  return ReadTextFile(path, int64_t{1} << 30).value();
}

void WriteAll(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

std::string FreshFolder(const std::string& name) {
  const std::string folder = absl::StrCat(::testing::TempDir(), "/weight_source_test/", name);
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  return folder;
}

std::string FileOf(const std::string& header, const std::string& data) {
  const uint64_t size = header.size();
  return std::string(reinterpret_cast<const char*>(&size), 8) + header + data;
}

// ---- safetensors ---------------------------------------------------------------------------

TEST(SafetensorsTest, WritesTheFormatByteForByte) {
  const std::string path = FreshFolder("write") + "/out.safetensors";
  for (int time = 0; time < 2; ++time) {  // the second replaces the first
    auto writer =
        SafetensorsWriter::Create(path, {{"b", DType::kF32, {1, 2}}, {"a", DType::kU8, {3}}},
                                  {{"format", "pt"}})
            .value();
    const float numbers[] = {1.0f, -2.0f};
    ASSERT_TRUE(writer->Append(numbers, 5).ok());  // pieces of any size
    ASSERT_TRUE(writer->Append(reinterpret_cast<const char*>(numbers) + 5, 3).ok());
    ASSERT_TRUE(writer->Append("xyz", 3).ok());
    ASSERT_TRUE(writer->Finish().ok());
  }
  std::string header =
      R"({"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},)"
      R"("a":{"dtype":"U8","shape":[3],"data_offsets":[8,11]}})";
  header.resize(4096 - 8, ' ');  // the data begin on a page
  EXPECT_EQ(ReadAll(path), FileOf(header, std::string("\0\0\x80\x3f\0\0\0\xc0xyz", 11)));

  const auto file = SafetensorsFile::Open(path).value();
  EXPECT_EQ(file->metadata().at("format"), "pt");
  EXPECT_EQ(file->Read("b", DType::kF32)->as<float>()[1], -2.0f);
  EXPECT_EQ(file->Find("c"), nullptr);
}

TEST(SafetensorsTest, AnUnfinishedFileLeavesTheOldOne) {
  const std::string path = FreshFolder("unfinished") + "/out.safetensors";
  WriteAll(path, "old");
  {
    auto writer = SafetensorsWriter::Create(path, {{"a", DType::kU8, {3}}}).value();
    ASSERT_TRUE(writer->Append("xy", 2).ok());
    EXPECT_EQ(writer->Finish().code(), absl::StatusCode::kInvalidArgument);
  }
  EXPECT_EQ(ReadAll(path), "old");
  const std::filesystem::directory_iterator files(std::filesystem::path(path).parent_path());
  EXPECT_EQ(std::distance(begin(files), end(files)), 1);  // nothing partial
  EXPECT_THAT(std::string(SafetensorsWriter::Create("no/such/folder/x", {}).status().message()),
              HasSubstr("no/such/folder/x"));
}

TEST(SafetensorsTest, ReadsWhatPythonWrote) {  // values printed by the safetensors package
  const auto file = SafetensorsFile::Open(kGolden + "qwen3/expected.safetensors").value();
  const ConstTensor tokens = file->Read("tokens.2", DType::kI32).value();
  EXPECT_EQ(tokens.shape(), Shape({5}));
  EXPECT_THAT(std::vector<int32_t>(tokens.as<int32_t>(), tokens.as<int32_t>() + 5),
              ElementsAre(16, 91, 270, 311, 152));
  const ConstTensor logits = file->Read("logits_f32.2", DType::kF32).value();
  EXPECT_EQ(logits.Rows(4, 1).as<float>()[1], std::bit_cast<float>(1073635865u));
  EXPECT_THAT(std::string(file->Read("tokens.2", DType::kI64).status().message()),
              HasSubstr("tokens.2 is I32 [5]"));
  EXPECT_THAT(std::string(file->Read("tokens.9", DType::kI32).status().message()),
              HasSubstr("expected.safetensors: there is no tensor tokens.9"));
  EXPECT_EQ(SafetensorsFile::Open("no/such/file").status().code(), absl::StatusCode::kNotFound);
}

struct LyingFile {
  const char* what;
  std::string bytes;
  const char* named;
};

TEST(SafetensorsTest, EveryLieOfAHeaderIsNamed) {
  const auto entry = [](const char* body) { return absl::StrCat("{\"layer.w\":{", body, "}}"); };
  const std::string eight(8, 'x');
  std::string huge = FileOf("{}", "");
  const uint64_t size = uint64_t{1} << 60;
  std::memcpy(huge.data(), &size, 8);
  const std::string two = R"({"first":{"dtype":"U8","shape":[6],"data_offsets":[0,6]},)"
                          R"("second":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})";
  const std::vector<LyingFile> cases = {
      {"empty file", "", "too short"},
      {"header of 2^60 bytes", huge, "1152921504606846976"},
      {"header longer than the file", FileOf("{}", "").substr(0, 9), "claims 2 bytes"},
      {"not JSON", FileOf("{\"a\":", eight), "not valid JSON"},
      {"not an object", FileOf("[1]", ""), "not a JSON object"},
      {"JSON bomb", FileOf(std::string(1 << 20, '['), eight), "nested deeper"},
      {"JSON bomb inside", FileOf("{\"layer.w\":" + std::string(1 << 20, '{'), eight),
       "nested deeper"},
      {"entry is a number", FileOf("{\"layer.w\":3}", eight), "layer.w"},
      {"no dtype", FileOf(entry(R"("shape":[8],"data_offsets":[0,8])"), eight), "layer.w"},
      {"unknown dtype", FileOf(entry(R"("dtype":"F7","shape":[8],"data_offsets":[0,8])"), eight),
       "F7"},
      {"no shape", FileOf(entry(R"("dtype":"U8","data_offsets":[0,1])"), "x"), "shape is missing"},
      {"negative size", FileOf(entry(R"("dtype":"U8","shape":[-8],"data_offsets":[0,8])"), eight),
       "-8"},
      {"fractional size",
       FileOf(entry(R"("dtype":"U8","shape":[8.5],"data_offsets":[0,8])"), eight), "layer.w"},
      {"overflowing shape",
       FileOf(entry(R"("dtype":"F64","shape":[4294967296,4294967296,16],"data_offsets":[0,8])"),
              eight),
       "layer.w"},
      {"shape and offsets differ",
       FileOf(entry(R"("dtype":"F32","shape":[3],"data_offsets":[0,8])"), eight), "does not take"},
      {"one offset", FileOf(entry(R"("dtype":"U8","shape":[8],"data_offsets":[8])"), eight),
       "data_offsets"},
      {"offsets backwards",
       FileOf(entry(R"("dtype":"U8","shape":[8],"data_offsets":[8,0])"), eight), "data_offsets"},
      {"truncated", FileOf(entry(R"("dtype":"U8","shape":[9],"data_offsets":[0,9])"), eight),
       "truncated"},
      {"overlap", FileOf(two, eight), "tensor second starts at byte 4 of the data, inside"},
      {"gap", FileOf(entry(R"("dtype":"U8","shape":[4],"data_offsets":[4,8])"), eight),
       "layer.w starts at byte 4"},
      {"bytes of nobody", FileOf(entry(R"("dtype":"U8","shape":[4],"data_offsets":[0,4])"), eight),
       "belong to none"},
      {"misaligned",
       FileOf(entry(R"("dtype":"F32","shape":[2],"data_offsets":[0,8])") + " ", eight), "aligned"},
  };
  const std::string path = FreshFolder("lies") + "/lie.safetensors";
  for (const LyingFile& test : cases) {
    WriteAll(path, test.bytes);
    const absl::Status status = SafetensorsFile::Open(path).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << test.what << ": " << status;
    EXPECT_THAT(std::string(status.message()), StartsWith(path)) << test.what;
    EXPECT_THAT(std::string(status.message()), HasSubstr(test.named)) << test.what;
  }
  WriteAll(path, FileOf(entry(R"("dtype":"U8","shape":[2,4],"data_offsets":[0,8])"),
                        eight));  // the control
  EXPECT_TRUE(SafetensorsFile::Open(path).ok());
}

// ---- checkpoints ---------------------------------------------------------------------------

absl::StatusOr<std::unique_ptr<WeightSource>> Open(const std::string& folder,
                                                   const ModelConfig& config) {
  return OpenCheckpoint(folder, config, ShardPlan::Make(config, {}).value());
}

std::vector<uint16_t> Bits(const ConstTensor& rows, int64_t count) {
  return {rows.as<uint16_t>(), rows.as<uint16_t>() + count};
}

TEST(CheckpointTest, EveryGoldenCheckpointOpens) {
  for (const char* name :
       {"qwen2_tied", "qwen3", "qwen35_text", "qwen35_vl", "llama3", "mixtral", "qwen3_moe"}) {
    const ModelConfig config = ReadModelConfig(kGolden + name).value();
    const auto weights = Open(kGolden + name, config);
    ASSERT_TRUE(weights.ok()) << name << ": " << weights.status();
    EXPECT_TRUE((*weights)->IsMapped());
    const bool text_only = std::string(name) != "qwen35_vl";
    EXPECT_EQ((*weights)->SkippedTensors().empty(), text_only) << name;
  }
}

TEST(CheckpointTest, RowsAreThoseOfTheFile) {  // values printed by Python
  const ModelConfig config = ReadModelConfig(kGolden + "qwen35_vl").value();
  const ShardPlan plan = ShardPlan::Make(config, {.tp = 4, .pp = 2}).value();
  const auto nested = OpenCheckpoint(kGolden + "qwen35_vl", config, plan).value();
  const TensorPlan& qkv = plan.Find("model.layers.0.linear_attn.in_proj_qkv.weight");
  const ConstTensor rows = nested->Rows(qkv, {5, 2}).value();
  EXPECT_EQ(rows.shape(), Shape({2, 64}));
  EXPECT_THAT(Bits(rows, 6), ElementsAre(15894, 48555, 15893, 48759, 15679, 48694));
  nested->Release(qkv, {0, qkv.rows});  // the pages come back from the file
  EXPECT_THAT(Bits(rows, 2), ElementsAre(15894, 48555));

  const ModelConfig sharded_config = ReadModelConfig(kGolden + "llama3").value();
  const ShardPlan sharded_plan = ShardPlan::Make(sharded_config, {}).value();
  const auto sharded = OpenCheckpoint(kGolden + "llama3", sharded_config, sharded_plan).value();
  const ConstTensor norm = sharded->Rows(sharded_plan.Find("model.norm.weight"), {0, 128}).value();
  EXPECT_THAT(Bits(norm, 3), ElementsAre(16198, 16273, 16274));

  const ModelConfig mixed_config =
      ReadModelConfig(kGolden + "qwen35_text").value();  // A_log is f32 in the file
  const ShardPlan mixed_plan = ShardPlan::Make(mixed_config, {}).value();
  const auto mixed = OpenCheckpoint(kGolden + "qwen35_text", mixed_config, mixed_plan).value();
  const ConstTensor a_log =
      mixed->Rows(mixed_plan.Find("model.layers.0.linear_attn.A_log"), {1, 2}).value();
  EXPECT_EQ(a_log.dtype(), DType::kF32);
  EXPECT_FLOAT_EQ(a_log.as<float>()[0], 2.563623f);
}

TEST(CheckpointTest, VisionAndDraftTensorsAreSkippedAndListed) {
  const ModelConfig config = ReadModelConfig(kGolden + "qwen35_vl").value();
  const std::vector<std::string> skipped =
      Open(kGolden + "qwen35_vl", config).value()->SkippedTensors();
  EXPECT_EQ(skipped.size(), 26);
  EXPECT_THAT(skipped, Each(::testing::AnyOf(StartsWith("model.visual."), StartsWith("mtp."))));
  EXPECT_THAT(skipped, Contains("mtp.fc.weight"));
  // A shortened model leaves the layers behind it.
  const auto shorter = Open(kGolden + "qwen35_vl", WithLayers(config, 3)).value()->SkippedTensors();
  EXPECT_THAT(shorter, Contains("model.language_model.layers.3.self_attn.q_proj.weight"));
}

// Changes to the one-file qwen3 case: its header as JSON, and its data.
absl::Status StatusOfChanged(const std::function<void(json&, std::string&)>& change) {
  const std::string folder = FreshFolder("changed");
  std::string bytes = ReadAll(kGolden + "qwen3/model.safetensors");
  uint64_t size = 0;
  std::memcpy(&size, bytes.data(), 8);
  json header = json::parse(bytes.substr(8, size));
  std::string data = bytes.substr(8 + size);
  change(header, data);
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  WriteAll(folder + "/model.safetensors", FileOf(text, data));
  return Open(folder, ReadModelConfig(kGolden + "qwen3").value()).status();
}

TEST(CheckpointTest, WhatDoesNotMatchTheConfigurationIsNamed) {
  const std::string name = "model.layers.1.self_attn.k_proj.weight";
  EXPECT_TRUE(StatusOfChanged([](json&, std::string&) {}).ok());  // the control
  const std::vector<std::pair<std::string, std::function<void(json&, std::string&)>>> cases = {
      {"no tensor " + name,
       [&](json& h, std::string&) {
         h["model.visual.x"] = h[name];  // its bytes stay somebody's
         h.erase(name);
       }},
      {"model.layers.1.self_attn.strange.weight is not part of a qwen3 model",
       [&](json& h, std::string& data) {
         h["model.layers.1.self_attn.strange.weight"] = {
             {"dtype", "U8"}, {"shape", {8}}, {"data_offsets", {data.size(), data.size() + 8}}};
         data += std::string(8, 'x');
       }},
      {name + " is F16; the configuration's dtype is BF16",
       [&](json& h, std::string&) { h[name]["dtype"] = "F16"; }},
      {name + " has shape [96, 64]; the configuration asks for [64, 96]",
       [&](json& h, std::string&) { std::swap(h[name]["shape"][0], h[name]["shape"][1]); }},
      {"truncated", [&](json&, std::string& data) { data.resize(data.size() - 8); }},
      {"inside the tensor before it",
       [&](json& h, std::string&) {
         const uint64_t begin = h[name]["data_offsets"][0], end = h[name]["data_offsets"][1];
         h[name]["data_offsets"] = {begin - 2, end - 2};
       }},
      {"is the same as",
       [&](json& h, std::string& data) {
         h["model.language_model.norm.weight"] = {
             {"dtype", "BF16"},
             {"shape", {96}},
             {"data_offsets", {data.size(), data.size() + 192}}};
         data += std::string(192, 'x');
       }},
  };
  for (const auto& [named, change] : cases) {
    const absl::Status status = StatusOfChanged(change);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(named));
    EXPECT_THAT(std::string(status.message()), HasSubstr("weight_source_test/changed"));
  }
}

TEST(CheckpointTest, AnIndexThatLiesIsNamed) {
  const ModelConfig config = ReadModelConfig(kGolden + "llama3").value();
  const auto status_with = [&](const std::function<void(json&)>& change) {
    const std::string folder = FreshFolder("index");
    for (const char* file :
         {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}) {
      std::filesystem::copy_file(kGolden + "llama3/" + file, folder + "/" + file);
    }
    json index = json::parse(ReadAll(kGolden + "llama3/model.safetensors.index.json"));
    change(index);
    WriteAll(folder + "/model.safetensors.index.json", index.dump());
    return Open(folder, config).status();
  };
  EXPECT_TRUE(status_with([](json&) {}).ok());
  const absl::Status elsewhere =
      status_with([](json& index) { index["weight_map"]["lm_head.weight"] = "../x.safetensors"; });
  EXPECT_THAT(std::string(elsewhere.message()), HasSubstr("lm_head.weight"));
  EXPECT_EQ(elsewhere.code(), absl::StatusCode::kInvalidArgument);
  const absl::Status other_file = status_with([](json& index) {
    index["weight_map"]["model.norm.weight"] = index["weight_map"]["model.embed_tokens.weight"];
  });
  EXPECT_THAT(std::string(other_file.message()),
              HasSubstr("00001-of-00002.safetensors: there is no tensor model.norm.weight"));
  EXPECT_FALSE(status_with([](json& index) { index.erase("weight_map"); }).ok());
  EXPECT_EQ(Open(FreshFolder("empty"), config).status().code(), absl::StatusCode::kNotFound);
}

// ---- random weights ------------------------------------------------------------------------

std::vector<float> Floats(const ConstTensor& tensor) {
  std::vector<float> values;
  for (int64_t i = 0; i < tensor.num_elements(); ++i) {
    values.push_back(tensor.dtype() == DType::kF32   ? tensor.as<float>()[i]
                     : tensor.dtype() == DType::kF16 ? ToFloat(tensor.as<F16>()[i])
                                                     : ToFloat(tensor.as<Bf16>()[i]));
  }
  return values;
}

TEST(RandomWeightsTest, ANumberDependsOnSeedNameAndPlaceOnly) {
  const ModelConfig config = ReadModelConfig(kGolden + "qwen35_text").value();
  const ShardPlan plan = ShardPlan::Make(config, {}).value();
  const auto weights = MakeRandomWeights(config, 7), again = MakeRandomWeights(config, 7),
             other = MakeRandomWeights(config, 8);
  for (const TensorPlan& tensor :
       plan.tensors()) {  // columns of 1, 4, 64, 96, 256: whole blocks and rests
    const std::vector<float> all = Floats(weights->Rows(tensor, {0, tensor.rows}).value());
    const int64_t first = tensor.rows / 3, count = tensor.rows / 2;
    const std::vector<float> some = Floats(again->Rows(tensor, {first, count}).value());
    EXPECT_TRUE(std::equal(some.begin(), some.end(), all.begin() + first * tensor.columns))
        << tensor.name;
    EXPECT_NE(Floats(other->Rows(tensor, {0, tensor.rows}).value()), all) << tensor.name;
  }
  const auto rows = [&](const char* name) {
    return Floats(weights->Rows(plan.Find(name), {0, 1}).value());
  };
  EXPECT_NE(rows("model.layers.0.mlp.up_proj.weight"), rows("model.layers.0.mlp.gate_proj.weight"));
}

TEST(RandomWeightsTest, NumbersHaveThePromisedSizes) {
  ModelConfig config = ReadModelConfig(kGolden + "qwen35_text").value();
  for (DType dtype : {DType::kBf16, DType::kF16, DType::kF32}) {
    config.dtype = dtype;
    const auto weights = MakeRandomWeights(config, 1);
    const TensorPlan matrix{
        .name = "model.layers.0.mlp.down_proj.weight", .rows = 500, .columns = 1000};
    const std::vector<float> values = Floats(weights->Rows(matrix, {0, 500}).value());
    double sum = 0, squares = 0, neighbours = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      sum += values[i];
      squares += values[i] * values[i];
      if (i > 0) neighbours += values[i] * values[i - 1];
    }
    const double n = static_cast<double>(values.size()), variance = 1.0 / 1000;
    // Five standard errors of n independent uniform numbers: mean sqrt(v / n), variance v sqrt(0.8
    // / n), lag v / sqrt(n).
    EXPECT_NEAR(sum / n, 0, 5 * std::sqrt(variance / n));
    EXPECT_NEAR(squares / n, variance, 5 * variance * std::sqrt(0.8 / n));
    EXPECT_NEAR(neighbours / n, 0, 5 * variance / std::sqrt(n));
    EXPECT_LT(*std::max_element(values.begin(), values.end()), std::sqrt(3.0 / 1000) * 1.01);
  }
}

TEST(RandomWeightsTest, HeadsRememberOneToAThousandTokens) {
  const ModelConfig config = ReadModelConfig(kGolden + "qwen35_text").value();
  const auto weights = MakeRandomWeights(config, 1);
  const auto values = [&](const char* name) {
    const TensorPlan tensor{
        .name = absl::StrCat("model.layers.0.linear_attn.", name), .rows = 500, .kept_f32 = true};
    return Floats(weights->Rows(tensor, {0, 500}).value());
  };
  const std::vector<float> a_log = values("A_log"), dt_bias = values("dt_bias");
  int short_memories = 0, long_memories = 0;
  for (size_t i = 0; i < a_log.size(); ++i) {
    const double decay =
        std::exp(a_log[i]) * std::log1p(std::exp(dt_bias[i]));  // per token, at a = 0
    EXPECT_GT(1 / decay, 0.9);
    EXPECT_LT(1 / decay, 1100);
    short_memories += 1 / decay < 10;
    long_memories += 1 / decay > 100;
  }
  EXPECT_GT(short_memories, 50);
  EXPECT_GT(long_memories, 50);
  const auto mean = [](const std::vector<float>& x) {
    return std::accumulate(x.begin(), x.end(), 0.0) / x.size();
  };
  EXPECT_NEAR(mean(values("norm.weight")), 1, 0.02);  // plain
  const TensorPlan zero_centred{.name = "model.norm.weight", .rows = 500, .kept_f32 = true};
  EXPECT_NEAR(mean(Floats(weights->Rows(zero_centred, {0, 500}).value())), 0, 0.02);
}

}  // namespace
}  // namespace plumbline
