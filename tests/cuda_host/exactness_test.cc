// The promise on the CUDA backend: one hash per token of a dense model and of a hybrid, over batch, chunking, tensor and
// pipeline parallelism and preemption.
#include "worker/exactness.h"

#include <gtest/gtest.h>

#include "tests/golden_case.h"
#include "tests/rank_order_ops.h"

namespace plumbline {
namespace {

ExactnessOptions OptionsFor(const std::string& model) {
  const std::string dir = GoldenDir(model);
  const ModelConfig config = *ReadModelConfig(dir);
  ExactnessOptions options;
  options.ranks.config = config;
  options.ranks.compute_dtype = config.dtype;
  options.ranks.make_backend = [] { return MakeBackend({.device = "cuda"}); };
  options.ranks.open_weights = [dir, config](const ShardPlan& plan) { return OpenCheckpoint(dir, config, plan); };
  options.transports = {LocalRanks::Options::Transport::kThreads};
  options.prompt_tokens = 70;
  options.generated_tokens = 4;
  return options;
}

class CudaExactnessTest : public testing::TestWithParam<std::string> {};

TEST_P(CudaExactnessTest, OneHashPerToken) {
  ExactnessOptions options = OptionsFor(GetParam());
  options.meshes = {{1, 1}, {2, 1}, {1, 2}};
  options.batches = {3};
  options.chunks = {64, 0};
  int64_t tokens = 0;
  const auto runs = RunExactnessMatrix(options, [&](const ExactnessRun& run) {
    tokens += run.tokens;
    EXPECT_EQ(run.differing_tokens, 0) << "tp " << run.mesh.tp << " pp " << run.mesh.pp << " batch " << run.batch
                                       << " chunk " << run.chunk << (run.preempted ? " preempted" : "") << ", first at "
                                       << run.first_difference;
  });
  ASSERT_TRUE(runs.ok()) << runs.status();
  EXPECT_GT(tokens, 1000);
}

INSTANTIATE_TEST_SUITE_P(Models, CudaExactnessTest, testing::Values("qwen3", "qwen35_text"),
                         [](const auto& info) { return info.param; });

// Sums over ranks in rank order instead of the tree must be caught.
TEST(CudaExactnessControl, RankOrderSumsAreCaught) {
  ExactnessOptions options = OptionsFor("qwen3");
  options.ranks.make_backend = []() -> absl::StatusOr<Backend> {
    absl::StatusOr<Backend> backend = MakeBackend({.device = "cuda"});
    backend->ops = std::make_unique<RankOrderOps>(std::move(backend->ops));
    return backend;
  };
  options.meshes = {{4, 1}};
  options.batches = {1};
  options.chunks = {0};
  const auto runs = RunExactnessMatrix(options, nullptr);
  ASSERT_TRUE(runs.ok()) << runs.status();
  for (const ExactnessRun& run : *runs) EXPECT_GT(run.differing_tokens, 0);
}

}  // namespace
}  // namespace plumbline
