// The planner's cost of a step against what the ops of a real step count, and the times that follow from it.
#include "parallel/speed.h"

#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/profiled_ops.h"
#include "worker/backend_factory.h"
#include "worker/local_ranks.h"

namespace plumbline {
namespace {

struct Counted {
  double linear_flops = 0, attention_flops = 0, delta_net_flops = 0, linear_bytes = 0;
};

Counted Count(const OpProfile& profile) {
  Counted counted;
  for (const auto& [op, totals] : profile) {
    if (absl::StartsWith(op, "Attention")) {
      counted.attention_flops += totals.cost.flops;
    } else if (absl::StartsWith(op, "ConvGatedDeltaNet")) {
      counted.delta_net_flops += totals.cost.flops;
    } else {
      counted.linear_flops += totals.cost.flops;
    }
    if (absl::StrContains(op, "Linear") || absl::StartsWith(op, "MoeMlp")) counted.linear_bytes += totals.cost.bytes;
  }
  return counted;
}

class SpeedTest : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Goldens, SpeedTest, testing::Values("qwen3", "llama3", "qwen35_text", "mixtral", "qwen3_moe"));

TEST_P(SpeedTest, CostIsWhatTheOpsOfAStepCount) {
  const std::string dir = absl::StrCat(PLUMBLINE_SOURCE_DIR, "/tests/golden/", GetParam());
  const ModelConfig config = ReadModelConfig(dir).value();
  const ShardPlan plan = ShardPlan::Make(config, {}).value();
  OpProfile profile;
  auto ranks = LocalRanks::Start({.config = config,
                                  .mesh = {},
                                  .limits = {.max_tokens = 256, .max_sequences = 2, .max_step_tokens = 128},
                                  .compute_dtype = config.dtype,
                                  .make_backend = [&]() -> absl::StatusOr<Backend> {
                                    Backend backend = MakeBackend({.num_threads = 1}).value();
                                    backend.ops = MakeProfiledOps(std::move(backend.ops), profile);
                                    return backend;
                                  },
                                  .open_weights =
                                      [&](const ShardPlan& shards) { return OpenCheckpoint(dir, config, shards); }})
                   .value();
  profile.clear();
  SequencePlan sequence = {.start = 0, .num_prompt_tokens = 128, .block_table = {0, 1}, .state_slot = 0, .draw_token = true};
  for (int i = 0; i < 128; ++i) sequence.tokens.push_back(1 + i % 50);
  ASSERT_TRUE(ranks->Run({.epoch = 1, .step = 1, .sequences = {sequence}}).ok());
  const Counted counted = Count(profile);
  const StepCost cost = CostOfStep(config, plan, 0, config.dtype, {.rows = 128, .prompt = true});
  // The head's rows are padded to whole leaves.
  EXPECT_NEAR(cost.linear_flops, counted.linear_flops, 0.01 * counted.linear_flops);
  EXPECT_NEAR(cost.attention_flops, counted.attention_flops, 1e-6 * counted.attention_flops);
  EXPECT_NEAR(cost.delta_net_flops, counted.delta_net_flops, 1e-6 * counted.delta_net_flops);
  EXPECT_LT(cost.weight_bytes, counted.linear_bytes);  // which also has activations
}

TEST(SpeedTest, DecodeIsTheBytesOfTheWeightsAtTheBandwidth) {
  const std::string path = absl::StrCat(PLUMBLINE_SOURCE_DIR, "/tests/golden/llama3");
  const ModelConfig config = ReadModelConfig(path).value();
  const ShardPlan plan = ShardPlan::Make(config, {}).value();
  const DeviceSpeed device = {.bytes_per_second = 1e9, .linear_flops_per_second = 1e15,
                              .attention_flops_per_second = 1e15, .delta_net_flops_per_second = 1e15};
  const StepCost cost = CostOfStep(config, plan, 0, config.dtype, {});
  EXPECT_DOUBLE_EQ(StepSeconds(config, plan, config.dtype, device, {}), (cost.weight_bytes + cost.cache_bytes) / 1e9);
}

TEST(SpeedTest, EveryGeneratedRowCostsItsTimeInEveryLayer) {
  const std::string path = absl::StrCat(PLUMBLINE_SOURCE_DIR, "/tests/golden/llama3");
  const ModelConfig config = ReadModelConfig(path).value();
  const ShardPlan plan = ShardPlan::Make(config, {.tp = 1, .pp = 2}).value();
  const DeviceSpeed device = {.bytes_per_second = 1e30, .linear_flops_per_second = 1e30, .attention_flops_per_second = 1e30,
                              .delta_net_flops_per_second = 1e30, .generated_row_seconds = 0.5};
  const double layers = static_cast<double>(config.num_layers());
  EXPECT_NEAR(StepSeconds(config, plan, config.dtype, device, {.num_sequences = 3}), 0.5 * 3 * layers, 1e-9);
  EXPECT_NEAR(StepSeconds(config, plan, config.dtype, device, {.rows = 64, .prompt = true}), 0, 1e-9);
}

TEST(SpeedTest, TwoRanksHaveHalfTheWorkAndAnExchange) {
  const std::string path = absl::StrCat(PLUMBLINE_SOURCE_DIR, "/tests/golden/llama3");
  const ModelConfig config = ReadModelConfig(path).value();
  const StepShape step = {.rows = 64, .prompt = true};
  const StepCost one = CostOfStep(config, ShardPlan::Make(config, {}).value(), 0, config.dtype, step);
  const StepCost two = CostOfStep(config, ShardPlan::Make(config, {.tp = 2}).value(), 0, config.dtype, step);
  EXPECT_NEAR(two.linear_flops, one.linear_flops / 2, 0.01 * one.linear_flops);
  EXPECT_DOUBLE_EQ(two.attention_flops, one.attention_flops / 2);
  EXPECT_EQ(one.num_exchanges, 0);
  EXPECT_EQ(two.num_exchanges, 4 * config.num_layers());
  EXPECT_GT(two.exchange_bytes, 0);
}

}  // namespace
}  // namespace plumbline
