// What a cluster of worker processes may be configured to be: the same bits at any shape and over any transport, and
// configurations that cannot work, refused with one cause.
#include <filesystem>

#include "tests/cluster_fixture.h"

namespace plumbline {
namespace {

Continuation GenerateExpected(ClusterOptions options) {
  const ExpectedCase expected = Expected(8);
  LaunchedCluster run(std::move(options));
  const RunnerReady ready = run.events.Next<RunnerReady>();
  EXPECT_EQ(ready.epoch, 1u);
  EXPECT_EQ(ready.capacity.num_blocks, 16);
  EXPECT_EQ(ready.capacity.num_state_slots, 4);
  Continuation continuation =
      Generate(run, ready.epoch, expected.prompt, static_cast<int>(expected.tokens.size()));
  EXPECT_EQ(continuation.tokens, expected.tokens) << run.Log();
  return continuation;
}

TEST(ClusterTest, ProcessesOfAnyShapeGiveTheSameBits) {
  const Continuation alone = GenerateExpected(DemoOptions({.tp = 1, .pp = 1}));
  const Continuation cut = GenerateExpected(DemoOptions({.tp = 2, .pp = 2}));
  EXPECT_TRUE(alone.logits == cut.logits);
  ClusterOptions over_tcp = DemoOptions({.tp = 2, .pp = 2});
  over_tcp.transport = "gloo";
  EXPECT_TRUE(GenerateExpected(std::move(over_tcp)).logits == alone.logits);
  // The comparison sees what it should: another arithmetic rounds elsewhere.
  ClusterOptions other = DemoOptions({.tp = 1, .pp = 1});
  other.arithmetic = "reference-1";
  const Continuation reference = GenerateExpected(std::move(other));
  EXPECT_EQ(reference.logits.size(), alone.logits.size());
  EXPECT_FALSE(reference.logits == alone.logits);
}

// Pieces of memory that a process shares with other ranks.
int NumSharedSegments(int64_t pid) {
  std::ifstream maps(absl::StrCat("/proc/", pid, "/maps"));
  int count = 0;
  for (std::string line; std::getline(maps, line);) {
    count += line.find("plumbline-ranks") != std::string::npos;
  }
  return count;
}

TEST(ClusterTest, ProcessesOfOneHostShareMemoryUnlessToldNotTo) {
  for (const auto& [transport, num_segments] :
       {std::pair{"auto", 2}, std::pair{"shm", 2}, std::pair{"gloo", 0}}) {
    ClusterOptions options = DemoOptions({.tp = 2, .pp = 2});
    options.transport = transport;
    LaunchedCluster run(std::move(options));
    run.events.Next<RunnerReady>();
    for (const RankInfo& rank : run.cluster->Snapshot().ranks) {
      EXPECT_EQ(NumSharedSegments(rank.pid), num_segments) << transport;  // one per group
    }
  }
  ClusterOptions options = DemoOptions({.tp = 2, .pp = 1});
  options.transport = "pigeon";
  LaunchedCluster run(std::move(options));
  const RunnerLost lost = run.events.SkipTo<RunnerLost>();
  EXPECT_TRUE(lost.fatal);
  EXPECT_THAT(std::string(lost.reason.message()), HasSubstr("'pigeon': expected auto, shm or gloo"));
}

TEST(ClusterTest, AModelThatCannotBeHeldEndsTheRunWithOneCause) {
  const std::string dir = testing::TempDir() + absl::StrCat("/cluster_configuration_test_", getpid());
  std::filesystem::create_directory(dir);
  std::filesystem::copy(kDemoModel, dir, std::filesystem::copy_options::recursive);
  std::filesystem::resize_file(dir + "/model.safetensors", 1 << 20);
  ClusterOptions options = DemoOptions({.tp = 2, .pp = 2});
  options.model_dir = dir;
  const absl::Time begin = absl::Now();
  LaunchedCluster run(std::move(options));
  const RunnerLost lost = run.events.Next<RunnerLost>();
  EXPECT_TRUE(lost.fatal);
  EXPECT_TRUE(absl::IsInvalidArgument(lost.reason)) << lost.reason;
  EXPECT_THAT(lost.reason.message(), HasSubstr("model.safetensors"));
  run.launcher->Stop(absl::Seconds(10));
  EXPECT_LT(absl::Now() - begin, absl::Seconds(10));
  std::filesystem::remove_all(dir);
}

TEST(ClusterTest, AModelLargerThanMemoryIsRefusedBeforeLoading) {
  ClusterOptions options = DemoOptions({.tp = 2, .pp = 1});
  options.limits.max_tokens = int64_t{1} << 40;
  LaunchedCluster run(std::move(options));
  const RunnerLost lost = run.events.Next<RunnerLost>();
  EXPECT_TRUE(lost.fatal);
  EXPECT_TRUE(absl::IsResourceExhausted(lost.reason)) << lost.reason;
  EXPECT_THAT(lost.reason.message(), HasSubstr("more than"));
}

TEST(ClusterTest, AnArithmeticThatNoWorkerHasIsRefused) {
  ClusterOptions options = DemoOptions({.tp = 2, .pp = 1});
  options.arithmetic = "abacus-1";
  LaunchedCluster run(std::move(options));
  const RunnerLost lost = run.events.Next<RunnerLost>();
  EXPECT_TRUE(lost.fatal);
  EXPECT_THAT(lost.reason.message(), HasSubstr("this run is in abacus-1"));
}

}  // namespace
}  // namespace plumbline
