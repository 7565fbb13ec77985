// A cluster of worker processes, disturbed: workers killed, stopped, slow and replaced, coordinators killed. Replays
// give the same bits.
#include <atomic>
#include <functional>
#include <random>
#include <thread>

#include "tests/cluster_fixture.h"

namespace plumbline {
namespace {

TEST(ClusterTest, AKilledWorkerIsReplacedAndTheOthersKeepTheirWeights) {
  const ExpectedCase expected = Expected(4);
  LaunchedCluster run(DemoOptions({.tp = 2, .pp = 2}));
  RunnerReady ready = run.events.Next<RunnerReady>();
  const Continuation undisturbed = Generate(run, ready.epoch, expected.prompt, 4);
  for (int victim : {3, 0}) {
    // With a step under way, which blocks in a collective or is lost.
    Generation generation = {.sequence = expected.prompt,
                             .num_prompt_tokens = static_cast<int>(expected.prompt.size())};
    run.cluster->Submit(generation.NextPlan(ready.epoch));
    const std::vector<RankInfo> before = run.cluster->Snapshot().ranks;
    const absl::Time killed_at = absl::Now();
    ASSERT_EQ(kill(static_cast<pid_t>(before[victim].pid), SIGKILL), 0);
    const RunnerLost lost = run.events.SkipTo<RunnerLost>();
    EXPECT_EQ(lost.epoch, ready.epoch);
    EXPECT_FALSE(lost.fatal);
    const RunnerReady again = run.events.Next<RunnerReady>(absl::Seconds(10));
    RecordProperty(absl::StrCat("ready_again_ms_", victim),
                   absl::ToInt64Milliseconds(absl::Now() - killed_at));
    std::printf("killed rank %d, ready again after %ld ms\n", victim,
                static_cast<long>(absl::ToInt64Milliseconds(absl::Now() - killed_at)));
    EXPECT_GT(again.epoch, ready.epoch);
    const std::vector<RankInfo> after = run.cluster->Snapshot().ranks;
    for (int rank = 0; rank < 4; ++rank) {
      EXPECT_EQ(after[rank].pid == before[rank].pid, rank != victim);
      EXPECT_EQ(after[rank].state, "ready");
      EXPECT_THAT(run.Log(), HasSubstr(absl::StrCat(
                                 "rank ", rank, " (", after[rank].host, " ", after[rank].pid, ") ",
                                 rank == victim ? "loaded" : "kept", " its weights")));
    }
    ready = again;
    const Continuation replayed = Generate(run, ready.epoch, expected.prompt, 4);
    EXPECT_EQ(replayed.tokens, undisturbed.tokens);
    EXPECT_TRUE(replayed.logits == undisturbed.logits);
  }
  // Steps of an epoch that is over lead to nothing.
  Generation late = {.sequence = expected.prompt,
                     .num_prompt_tokens = static_cast<int>(expected.prompt.size())};
  run.cluster->Submit(late.NextPlan(ready.epoch - 1));
  EXPECT_EQ(Generate(run, ready.epoch, expected.prompt, 1).tokens[0], expected.tokens[0]);
}

// The events up to the last result of a generation that nothing disturbed, replayed as often as its
// epoch is lost.
Continuation GenerateInSpite(LaunchedCluster& run, const std::vector<int32_t>& prompt,
                             int num_tokens) {
  uint64_t epoch = run.cluster->Snapshot().epoch;
  while (true) {
    Generation generation = {.sequence = prompt,
                             .num_prompt_tokens = static_cast<int>(prompt.size())};
    Continuation continuation;
    run.cluster->Submit(generation.NextPlan(epoch));
    while (true) {
      RunnerEvent event = run.events.NextOfAny();
      if (const RunnerReady* ready = std::get_if<RunnerReady>(&event)) {
        epoch = ready->epoch;
        break;
      }
      if (const RunnerLost* lost = std::get_if<RunnerLost>(&event)) {
        if (!lost->fatal) continue;
        ADD_FAILURE() << lost->reason << "\n" << run.Log();
        return continuation;
      }
      const StepResult& result = std::get<StepResult>(event);
      if (result.epoch != epoch) continue;
      continuation.tokens.push_back(result.sequences[0].token);
      continuation.logits += result.sequences[0].logits;
      if (static_cast<int>(continuation.tokens.size()) == num_tokens) return continuation;
      generation.sequence.push_back(result.sequences[0].token);
      run.cluster->Submit(generation.NextPlan(epoch));
    }
  }
}

TEST(ClusterTest, WorkersKilledAtAnyMomentCostNoToken) {
  const ExpectedCase expected = Expected(8);
  LaunchedCluster run(DemoOptions({.tp = 2, .pp = 2}));
  const RunnerReady ready = run.events.Next<RunnerReady>();
  const Continuation undisturbed = Generate(run, ready.epoch, expected.prompt, 8);
  std::atomic<bool> done = false;
  std::thread killer([&] {
    // Any rank, with pauses that hit steps, loading and connecting alike; then peace, so that the
    // last one can end.
    std::mt19937 random(7);
    for (int i = 0; i < 15; ++i) {
      absl::SleepFor(absl::Milliseconds(random() % 120));
      const int64_t pid = run.launcher->pid(static_cast<int>(random() % 4));
      if (pid > 0) kill(static_cast<pid_t>(pid), SIGKILL);
    }
    done = true;
  });
  for (bool last = false; !last;) {
    last = done;
    const Continuation replayed = GenerateInSpite(run, expected.prompt, 8);
    EXPECT_EQ(replayed.tokens, undisturbed.tokens);
    EXPECT_TRUE(replayed.logits == undisturbed.logits);
    if (HasFailure()) break;
  }
  killer.join();
}

TEST(ClusterTest, AStoppedWorkerIsNoticedAndReplaced) {
  ClusterOptions options = DemoOptions({.tp = 2, .pp = 1});
  options.heartbeat_timeout = absl::Seconds(2);
  LaunchedCluster run(std::move(options));
  const RunnerReady ready = run.events.Next<RunnerReady>();
  const RankInfo stopped = run.cluster->Snapshot().ranks[1];
  ASSERT_EQ(kill(static_cast<pid_t>(stopped.pid), SIGSTOP), 0);
  const RunnerLost lost = run.events.Next<RunnerLost>(absl::Seconds(10));
  EXPECT_THAT(lost.reason.message(),
              HasSubstr(absl::StrCat("rank 1 (", stopped.host, " ", stopped.pid, ")")));
  EXPECT_THAT(lost.reason.message(), HasSubstr("no sign of life"));
  EXPECT_GT(run.events.Next<RunnerReady>().epoch, ready.epoch);
  EXPECT_NE(run.cluster->Snapshot().ranks[1].pid, stopped.pid);
}

// Every rank in turn stops before a step, in which the others wait for it, directly or through the pipeline. Its heartbeats
// may be missing for so long that it is the step that is missed: by the coordinator, or first by a rank in a call.
TEST(ClusterTest, AStepThatStandsStillIsBlamedOnTheRankThatTheOthersWaitFor) {
  const ExpectedCase expected = Expected(8);
  for (const auto& [transport, step_timeout] :
       {std::pair{"shm", absl::Minutes(2)}, std::pair{"gloo", absl::Minutes(2)}, std::pair{"shm", absl::Seconds(2)}}) {
    ClusterOptions options = DemoOptions({.tp = 2, .pp = 2});
    options.transport = transport;
    options.step_timeout = step_timeout;
    options.late_step_least = absl::Seconds(2);
    options.heartbeat_timeout = absl::Seconds(30);
    LaunchedCluster run(std::move(options));
    RunnerReady ready = run.events.Next<RunnerReady>();
    const Continuation undisturbed = Generate(run, ready.epoch, expected.prompt, 8);
    for (int victim : {3, 0, 2, 1}) {
      Generate(run, ready.epoch, expected.prompt, victim);  // so that it stops at another count each time
      const RankInfo stopped = run.cluster->Snapshot().ranks[victim];
      ASSERT_EQ(kill(static_cast<pid_t>(stopped.pid), SIGSTOP), 0);
      Generation generation = {.sequence = expected.prompt,
                               .num_prompt_tokens = static_cast<int>(expected.prompt.size())};
      run.cluster->Submit(generation.NextPlan(ready.epoch));
      absl::Duration stalled_for;
      for (int i = 0; i < 1000 && stalled_for < absl::Milliseconds(600); ++i) {  // heartbeats would tell of progress by then
        absl::SleepFor(absl::Milliseconds(2));
        stalled_for = run.cluster->Snapshot().stalled_for;
      }
      EXPECT_GE(stalled_for, absl::Milliseconds(600));
      const RunnerLost lost = run.events.Next<RunnerLost>(absl::Seconds(10));
      EXPECT_FALSE(lost.fatal);
      const std::string name = absl::StrCat("rank ", victim, " (", stopped.host, " ", stopped.pid, ")");
      EXPECT_THAT(std::string(lost.reason.message()), HasSubstr(absl::StrCat("furthest behind: ", name, " ")));
      EXPECT_THAT(std::string(lost.reason.message()), HasSubstr("; others: rank "));
      EXPECT_THAT(run.Log(), HasSubstr(absl::StrCat("worker_given_up ", victim, ": lost ", name)));
      const ClusterSnapshot snapshot = run.cluster->Snapshot();
      EXPECT_EQ(snapshot.stalled_for, absl::ZeroDuration());
      ASSERT_TRUE(snapshot.last_fault);
      ASSERT_EQ(snapshot.last_fault->culprits.size(), 1u) << snapshot.last_fault->reason;
      EXPECT_EQ(snapshot.last_fault->culprits[0].rank, victim);
      EXPECT_EQ(snapshot.last_fault->culprits[0].pid, stopped.pid);
      ready = run.events.Next<RunnerReady>(absl::Seconds(15));
      EXPECT_NE(run.cluster->Snapshot().ranks[victim].pid, stopped.pid);
      EXPECT_TRUE(Generate(run, ready.epoch, expected.prompt, 8).logits == undisturbed.logits);
    }
    EXPECT_EQ(run.cluster->Snapshot().num_faults, 4u);
  }
}

// Steps of one row, then one of 64 that takes far longer than a late step may: the ranks enter calls all the while.
TEST(ClusterTest, ALongStepAfterShortOnesIsLeftInPeace) {
  ClusterOptions options = DemoOptions({.tp = 2, .pp = 1});
  auto config = nlohmann::json::parse(options.config_json);
  config["intermediate_size"] = 1 << 14;  // slow, in plain loops
  const std::vector<std::string> four_layers = config["layer_types"];
  for (int i = 0; i < 3; ++i) {
    for (const std::string& type : four_layers) config["layer_types"].push_back(type);
  }
  config["num_hidden_layers"] = 16;
  options.config_json = config.dump();
  options.random_seed = 1;
  options.arithmetic = "reference-1";
  options.late_step_least = absl::Milliseconds(1200);  // two heartbeats and a bit
  const absl::Duration least = options.late_step_least;
  LaunchedCluster run(std::move(options));
  const RunnerReady ready = run.events.Next<RunnerReady>();
  for (int i = 0; i < 4; ++i) Generate(run, ready.epoch, {1}, 1);
  const absl::Time begin = absl::Now();
  Generate(run, ready.epoch, std::vector<int32_t>(64, 1), 1);
  const absl::Duration took = absl::Now() - begin;
  EXPECT_GT(took, 2 * least) << "too fast to tell";
  EXPECT_EQ(run.cluster->Snapshot().num_faults, 0u) << run.Log();
  std::printf("a step of 64 rows took %.1f s\n", absl::ToDoubleSeconds(took));
}

// Two workers, not its children, and a coordinator that keeps them busy; killed while the workers
// are in this state.
void KillCoordinatorOf(const std::function<void(Process& first, Process& second)>& prepare) {
  const std::string token = MakeJoinToken();
  Process coordinator({CLUSTER_WORKER, "--be-coordinator-of", kDemoModel, "--join-token-file", "-"},
                      token);
  ASSERT_TRUE(coordinator.WaitFor("\n"));
  const std::string address = coordinator.output().substr(0, coordinator.output().find('\n'));
  Process first(WorkerProgram(address), token), second(WorkerProgram(address), token);
  ASSERT_TRUE(coordinator.WaitFor("ready\n"));
  prepare(first, second);
  kill(coordinator.pid(), SIGKILL);
  const absl::Time killed_at = absl::Now();
  EXPECT_EQ(first.WaitForEnd(absl::Seconds(5)), 1);
  EXPECT_THAT(first.output(), HasSubstr(address));
  EXPECT_EQ(std::count(first.output().begin(), first.output().end(), '\n'), 1) << first.output();
  kill(second.pid(), SIGCONT);
  EXPECT_EQ(second.WaitForEnd(absl::Seconds(5)), 1);
  EXPECT_LT(absl::Now() - killed_at, absl::Seconds(5));
}

TEST(ClusterTest, WorkersEndWhenTheirCoordinatorIsKilled) {
  KillCoordinatorOf([](Process&, Process&) {});
}

TEST(ClusterTest, AWorkerThatWaitsForAStoppedPeerEndsWithItsCoordinator) {
  KillCoordinatorOf([](Process&, Process& second) {
    kill(second.pid(), SIGSTOP);
    absl::SleepFor(absl::Milliseconds(100));  // now the first one is in a collective
  });
}

}  // namespace
}  // namespace plumbline
