// The planner's bytes against published sizes and against sums worked out by hand.
#include "parallel/planner.h"

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "parallel/json_reader.h"
#include "worker/model/stage.h"

namespace plumbline {
namespace {

using ::testing::HasSubstr;

constexpr double kGib = 1024.0 * 1024 * 1024;

ModelConfig Config(const std::string& name) {
  const std::string path =
      absl::StrCat(PLUMBLINE_SOURCE_DIR, "/tests/golden/configs/", name, ".json");
  return ParseModelConfig(ReadTextFile(path, 1 << 20).value()).value();
}

std::vector<RankBytes> Plan(const ModelConfig& config, Mesh mesh, CacheLimits limits = {}) {
  return PlanMemory(config, ShardPlan::Make(config, mesh).value(), limits, config.dtype);
}

TEST(PlannerTest, ParameterCountsArePublishedOnes) {
  const auto parameters = [](const char* name) { return Plan(Config(name), {})[0].parameters; };
  EXPECT_EQ(parameters("qwen3.6-27b"), 26895998464);
  EXPECT_EQ(parameters("qwen3.5-0.8b"), 752393024);
  EXPECT_EQ(parameters("qwen2.5-7b"), 7615616512);
  EXPECT_EQ(parameters("qwen3-8b"), 8190735360);
  EXPECT_EQ(parameters("qwen3-0.6b"), 596049920);
  EXPECT_EQ(parameters("mixtral-8x7b"), 46702792704);
  EXPECT_EQ(parameters("qwen3-30b-a3b"), 30532122624);
}

TEST(PlannerTest, WeightsOfQwen36PerRank) {
  const ModelConfig config = Config("qwen3.6-27b");
  EXPECT_EQ(Plan(config, {})[0].checkpoint_bytes, 53791996928);
  EXPECT_NEAR(Plan(config, {.tp = 2})[1].checkpoint_bytes / kGib, 25.05, 0.005);
  EXPECT_NEAR(Plan(config, {.tp = 4})[3].checkpoint_bytes / kGib, 12.52, 0.01);
  // At eight ranks each of the 4 KV heads lies on two: 16 layers x (k, v) x 4 heads x 256 x 5120 x
  // 2 bytes more in all, 40 MiB per rank more than an eighth.
  const std::vector<RankBytes> eight = Plan(config, {.tp = 8});
  int64_t sum = 0, replicated = 0;
  for (const RankBytes& rank : eight) sum += rank.checkpoint_bytes;
  const ShardPlan plan = ShardPlan::Make(config, {.tp = 8}).value();
  for (const TensorPlan& tensor : plan.tensors()) {
    if (tensor.split == Split::kReplicated) replicated += 2 * tensor.rows * tensor.columns;
  }
  const int64_t duplicated = int64_t{16} * 2 * 4 * 256 * 5120 * 2;
  EXPECT_EQ(duplicated, int64_t{8} * 40 << 20);
  EXPECT_EQ(sum, 53791996928 + 7 * replicated + duplicated);
}

TEST(PlannerTest, PipelineStagesHoldTheModelOnce) {
  for (const char* name : {"qwen3.6-27b", "mixtral-8x7b"}) {
    const ModelConfig config = Config(name);
    int64_t sum = 0;
    for (const RankBytes& rank : Plan(config, {.tp = 1, .pp = 4})) sum += rank.parameters;
    EXPECT_EQ(sum, Plan(config, {})[0].parameters) << name;
  }
}

TEST(PlannerTest, SmallTensorsAreHeldAsF32) {
  const ModelConfig config = Config("qwen3.6-27b");
  const RankBytes one = Plan(config, {})[0];
  // Norms, A_log, dt_bias and convolutions take two bytes more each than in the file.
  const int64_t kept = 64 * 2 * 5120 + 5120 + 48 * (2 * 48 + 128 + 10240 * 4) + 16 * 2 * 256;
  EXPECT_EQ(one.weight_bytes, one.checkpoint_bytes + 2 * kept);
  // In f32 everything doubles but the embedding table, which is looked up as it lies in the file.
  const ShardPlan plan = ShardPlan::Make(config, {}).value();
  EXPECT_EQ(PlanMemory(config, plan, {}, DType::kF32)[0].weight_bytes,
            4 * one.parameters - 2 * int64_t{248320} * 5120);
}

TEST(PlannerTest, ATiedEmbeddingIsHeldAsTableAndAsHead) {
  const ModelConfig config = Config("qwen3-0.6b");
  const int64_t embedding = int64_t{151936} * 1024 * 2, kept = 28 * (2 * 1024 + 2 * 128) + 1024;
  const RankBytes one = Plan(config, {})[0];
  EXPECT_EQ(one.weight_bytes, one.checkpoint_bytes + 2 * kept + embedding);
  int64_t sum = 0;
  for (const RankBytes& rank : Plan(config, {.tp = 1, .pp = 2})) sum += rank.weight_bytes;
  EXPECT_EQ(sum, one.weight_bytes);
}

TEST(PlannerTest, CachesOfQwen36) {
  const ModelConfig config = Config("qwen3.6-27b");
  EXPECT_EQ(KvBytesPerToken(config, DType::kBf16), 65536);
  EXPECT_EQ(KvBytesPerToken(Config("qwen2.5-7b"), DType::kBf16), 57344);
  EXPECT_EQ(KvBytesPerToken(Config("qwen3-8b"), DType::kBf16), 147456);
  EXPECT_EQ(KvBytesPerToken(Config("mixtral-8x7b"), DType::kBf16), 131072);
  EXPECT_EQ(KvBytesPerToken(Config("qwen3-30b-a3b"), DType::kBf16), 98304);

  const CacheLimits limits{.max_tokens = 32768, .max_sequences = 1, .max_step_tokens = 512};
  const int64_t state = 150994944 + 2949120;
  const auto rank = [&](int tp) { return Plan(config, {.tp = tp}, limits).back(); };
  EXPECT_EQ(rank(1).kv_bytes, int64_t{2} << 30);
  EXPECT_EQ(rank(2).kv_bytes, int64_t{1} << 30);
  EXPECT_EQ(rank(4).kv_bytes, int64_t{512} << 20);
  EXPECT_EQ(rank(8).kv_bytes, int64_t{512} << 20);  // KV heads are replicated
  EXPECT_EQ(rank(1).state_bytes, state);
  EXPECT_EQ(rank(8).state_bytes, state / 8);
  EXPECT_EQ(Plan(config, {}, {.max_sequences = 3, .max_cached_states = 2})[0].state_bytes, 5 * state);
  EXPECT_EQ(Plan(config, {}, {.max_tokens = 65})[0].kv_bytes, 128 * 65536);  // whole blocks
  int64_t kv = 0, states = 0;
  for (const RankBytes& bytes : Plan(config, {.tp = 2, .pp = 4}, limits)) {
    kv += bytes.kv_bytes;
    states += bytes.state_bytes;
  }
  EXPECT_EQ(kv, int64_t{2} << 30);
  EXPECT_EQ(states, state);
}

TEST(PlannerTest, ActivationsAreThoseTheStageLaysOut) {
  for (const char* name : {"qwen3.6-27b", "qwen2.5-7b", "qwen3-30b-a3b", "qwen3-0.6b"}) {
    const ModelConfig config = Config(name);
    for (const Mesh mesh : {Mesh{.tp = 1}, Mesh{.tp = 4}, Mesh{.tp = 2, .pp = 2}}) {
      const CacheLimits limits{.max_tokens = 64, .max_sequences = 8, .max_step_tokens = 511};
      const ShardPlan plan = ShardPlan::Make(config, mesh).value();
      for (DType act : {DType::kBf16, DType::kF32}) {
        for (const RankBytes& rank : PlanMemory(config, plan, limits, act)) {
          EXPECT_EQ(rank.activation_bytes,
                    StageActivationBytes(config, plan, rank.stage, limits, act))
              << name << " rank " << rank.rank;
        }
      }
    }
  }
}

TEST(PlannerTest, WhatDoesNotFitIsSaidInBytes) {
  const ModelConfig config = Config("qwen3.6-27b");
  const std::vector<RankBytes> ranks =
      Plan(config, {.tp = 2}, {.max_tokens = 4096, .max_sequences = 4, .max_step_tokens = 64});
  const int64_t need = ranks[0].total();
  EXPECT_TRUE(CheckFits(ranks, need).ok());
  const absl::Status status = CheckFits(ranks, need - 7);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("rank 0 needs"));
  EXPECT_THAT(std::string(status.message()), HasSubstr(" 7 more than"));
}

}  // namespace
}  // namespace plumbline
