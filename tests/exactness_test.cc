// The promise: one hash per token over batch, chunking, tensor and pipeline parallelism, preemption and transport. The
// whole matrix takes long: `plumbline doctor --exactness` runs it on any model; here every axis is walked with fewer points.
#include "worker/exactness.h"

#include <gtest/gtest.h>

#include "tests/golden_case.h"
#include "tests/rank_order_ops.h"

namespace plumbline {
namespace {

using Transport = LocalRanks::Options::Transport;

ExactnessOptions OptionsFor(const std::string& dir) {
  const ModelConfig config = *ReadModelConfig(dir);
  ExactnessOptions options;
  options.ranks.config = config;
  options.ranks.compute_dtype = config.dtype;
  options.ranks.make_backend = [] { return MakeBackend({.num_threads = 1}); };
  options.ranks.open_weights = [dir, config](const ShardPlan& plan) { return OpenCheckpoint(dir, config, plan); };
  options.transports = {Transport::kThreads};
  return options;
}

std::string Describe(const ExactnessRun& run) {
  const char* transport = run.transport == Transport::kGloo  ? " gloo"
                          : run.transport == Transport::kShm ? " shm"
                                                             : " threads";
  return absl::StrCat("tp ", run.mesh.tp, " pp ", run.mesh.pp, transport, " batch ", run.batch, " chunk ", run.chunk,
                      " prefix hit ", run.prefix_hit, run.preempted ? " preempted" : "", ": ",
                      run.differing_tokens, " of ", run.tokens, " tokens differ, first at ", run.first_difference);
}

void ExpectExact(const ExactnessOptions& options) {
  int64_t tokens = 0;
  const auto runs = RunExactnessMatrix(options, [&](const ExactnessRun& run) {
    tokens += run.tokens;
    EXPECT_EQ(run.differing_tokens, 0) << Describe(run);
  });
  ASSERT_TRUE(runs.ok()) << runs.status();
  EXPECT_GT(tokens, 0);
}

std::vector<std::string> ModelDirs() {
  std::vector<std::string> dirs = {DemoModelDir()};
  for (const std::string& name : GoldenModels()) dirs.push_back(GoldenDir(name));
  return dirs;
}

class ExactnessTest : public testing::TestWithParam<std::string> {};

TEST_P(ExactnessTest, BatchAndChunkAndPreemption) {
  ExactnessOptions options = OptionsFor(GetParam());
  options.meshes = {{1, 1}};
  options.batches = {1, 2, 3, 7, 16, 17};
  options.chunks = {64, 128, 0};
  ExpectExact(options);
}

TEST_P(ExactnessTest, TensorAndPipelineParallel) {
  ExactnessOptions options = OptionsFor(GetParam());
  const int max_pp = static_cast<int>(std::min<int64_t>(4, options.ranks.config.num_layers()));
  for (const int tp : {1, 2, 4, 8}) {
    for (const int pp : {1, 2, max_pp}) options.meshes.push_back({tp, pp});
  }
  options.batches = {3};
  options.chunks = {128};
  ExpectExact(options);
}

// The models are too small for steps that go by rows; here all do.
TEST_P(ExactnessTest, ExchangeByRows) {
  ExactnessOptions options = OptionsFor(GetParam());
  options.ranks.gather_bytes = 0;
  for (const int tp : {2, 4, 8}) {
    for (const int pp : {1, 2}) options.meshes.push_back({tp, pp});
  }
  options.batches = {1, 3};
  options.chunks = {128};
  ExpectExact(options);
}

TEST_P(ExactnessTest, ProcessTransportsBetweenRanks) {
  ExactnessOptions options = OptionsFor(GetParam());
  options.meshes = {{2, 2}, {4, 1}};
  options.transports = {Transport::kGloo, Transport::kShm};
  options.batches = {3};
  options.chunks = {128};
  options.generated_tokens = 4;
  ExpectExact(options);
}

TEST_P(ExactnessTest, PrefixHits) {
  ExactnessOptions options = OptionsFor(GetParam());
  options.meshes = {{1, 1}, {2, 1}, {1, 2}};
  options.batches = {1, 3, 17};
  options.chunks = {0};
  options.prefix_hits = {64, 128};
  ExpectExact(options);
}

TEST_P(ExactnessTest, LongPrefixHits) {
  ExactnessOptions options = OptionsFor(GetParam());
  options.prompt_tokens = 2150;
  options.ranks.config.max_positions = 4096;  // the small models' own contexts are shorter
  options.meshes = {{1, 1}, {2, 2}};
  options.batches = {2};
  options.chunks = {512};
  options.prefix_hits = {0, 64, 512, 2048};
  ExpectExact(options);
}

INSTANTIATE_TEST_SUITE_P(Models, ExactnessTest, testing::ValuesIn(ModelDirs()), [](const auto& info) {
  return info.param == DemoModelDir() ? std::string("demo") : info.param.substr(info.param.rfind('/') + 1);
});

// Sums over ranks in rank order instead of the tree must be caught, or the tests above prove nothing.
class ExactnessControl : public testing::TestWithParam<int64_t> {};

TEST_P(ExactnessControl, RankOrderSumsAreCaught) {
  ExactnessOptions options = OptionsFor(DemoModelDir());
  options.ranks.gather_bytes = GetParam();
  options.ranks.make_backend = []() -> absl::StatusOr<Backend> {
    absl::StatusOr<Backend> backend = MakeBackend({.num_threads = 1});
    backend->ops = std::make_unique<RankOrderOps>(std::move(backend->ops));
    return backend;
  };
  options.meshes = {{4, 1}};
  options.batches = {1};
  options.chunks = {0};
  const auto runs = RunExactnessMatrix(options, nullptr);
  ASSERT_TRUE(runs.ok()) << runs.status();
  for (const ExactnessRun& run : *runs) EXPECT_GT(run.differing_tokens, 0) << Describe(run);
}

INSTANTIATE_TEST_SUITE_P(Exchanges, ExactnessControl, testing::Values(kGatherBytes, 0));

// Copies no states, so that a prefix hit goes on from what another sequence left in its slot.
class ForgetfulDevice final : public Device {
 public:
  explicit ForgetfulDevice(std::unique_ptr<Device> device) : device_(std::move(device)) {}
  Buffer Allocate(size_t num_bytes) override { return device_->Allocate(num_bytes); }
  void Upload(Tensor to, const void* from) override { device_->Upload(to, from); }
  void Download(void* to, ConstTensor from) override { device_->Download(to, from); }
  void Copy(Tensor to, ConstTensor from) override {
    if (to.dtype() != DType::kU8) device_->Copy(to, from);
  }
  void Zero(Tensor to) override { device_->Zero(to); }
  void Synchronize() override { device_->Synchronize(); }
  std::string Name() const override { return device_->Name(); }

 private:
  void Free(void*, size_t) override {}  // buffers are the inner device's
  std::unique_ptr<Device> device_;
};

TEST(ExactnessStatesControl, StatesThatAreNotCopiedAreCaught) {
  ExactnessOptions options = OptionsFor(DemoModelDir());
  options.ranks.make_backend = []() -> absl::StatusOr<Backend> {
    absl::StatusOr<Backend> backend = MakeBackend({.num_threads = 1});
    backend->device = std::make_unique<ForgetfulDevice>(std::move(backend->device));
    return backend;
  };
  options.meshes = {{1, 1}};
  options.batches = {1};
  options.chunks = {0};
  options.prefix_hits = {64};
  const auto runs = RunExactnessMatrix(options, nullptr);
  ASSERT_TRUE(runs.ok()) << runs.status();
  for (const ExactnessRun& run : *runs) EXPECT_GT(run.differing_tokens, 0) << Describe(run);
}

}  // namespace
}  // namespace plumbline
