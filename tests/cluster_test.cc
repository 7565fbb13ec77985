// The cluster of worker processes, with real processes: the same bits at any shape, workers killed,
// stopped, refused and left alone, configurations that cannot work.
#include "coordinator/cluster/cluster.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <filesystem>
#include <fstream>
#include <functional>
#include <mutex>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "coordinator/cluster/child_process.h"
#include "coordinator/cluster/join_token.h"
#include "coordinator/cluster/launcher.h"
#include "tests/test_certificates.h"

namespace plumbline {
namespace {

using ::testing::HasSubstr;

const std::string kDemoModel = std::string(PLUMBLINE_SOURCE_DIR) + "/deploy/demo_model/model";
constexpr absl::Duration kPatience = absl::Minutes(5);  // of a busy machine, and of one that is watched by a sanitizer

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

// The runner's events, in order.
class Events {
 public:
  void Push(RunnerEvent event) {
    std::lock_guard lock(mutex_);
    events_.push_back(std::move(event));
    changed_.notify_all();
  }
  // The next event, which must be an E.
  template <typename E>
  E Next(absl::Duration patience = kPatience) {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_for(lock, absl::ToChronoMilliseconds(patience),
                           [this] { return !events_.empty(); })) {
      ADD_FAILURE() << "no event within " << patience;
      return E();
    }
    RunnerEvent event = std::move(events_.front());
    events_.pop_front();
    if (E* wanted = std::get_if<E>(&event)) return std::move(*wanted);
    const RunnerLost* lost = std::get_if<RunnerLost>(&event);
    ADD_FAILURE() << "another event: " << event.index() << " "
                  << (lost ? lost->reason.ToString() : "");
    return E();
  }
  RunnerEvent NextOfAny() {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_for(lock, absl::ToChronoMilliseconds(kPatience),
                           [this] { return !events_.empty(); })) {
      return RunnerLost{.reason = absl::DeadlineExceededError("no event"), .fatal = true};
    }
    RunnerEvent event = std::move(events_.front());
    events_.pop_front();
    return event;
  }
  template <typename E>
  E SkipTo() {
    while (true) {
      {
        std::unique_lock lock(mutex_);
        if (!changed_.wait_for(lock, absl::ToChronoMilliseconds(kPatience),
                               [this] { return !events_.empty(); }))
          break;
        if (!std::holds_alternative<E>(events_.front())) {
          events_.pop_front();
          continue;
        }
      }
      return Next<E>();
    }
    ADD_FAILURE() << "no such event within " << kPatience;
    return E();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<RunnerEvent> events_;
};

ClusterOptions DemoOptions(Mesh mesh) {
  return {.join_token = MakeJoinToken(),
          .build = "test",
          .mesh = mesh,
          .model_dir = kDemoModel,
          .config_json = ReadFile(kDemoModel + "/config.json"),
          .limits = {.max_tokens = 1024, .max_sequences = 4, .max_step_tokens = 128}};
}

std::vector<std::string> WorkerProgram(const std::string& address) {
  return {CLUSTER_WORKER, "--coordinator", address, "--join-token-file", "-"};
}

// A cluster whose workers are children of this process.
struct LaunchedCluster {
  explicit LaunchedCluster(ClusterOptions options) {
    options.on_event = [this](const ClusterEvent& event) {
      std::lock_guard lock(mutex);
      log.push_back(absl::StrCat(NameOf(event.kind), " ", event.rank, ": ", event.text));
    };
    options.on_given_up = [this](int rank, int64_t pid) { launcher->Kill(rank, pid); };
    const std::string token = options.join_token;
    std::vector<int> ranks(options.mesh.size());
    for (size_t i = 0; i < ranks.size(); ++i) ranks[i] = static_cast<int>(i);
    auto created = Cluster::Create(std::move(options));
    EXPECT_TRUE(created.ok()) << created.status();
    cluster = *std::move(created);
    auto started =
        Launcher::Start({.command = WorkerProgram(cluster->worker_address()),
                         .join_token = token,
                         .ranks = ranks,
                         .max_restarts_per_minute = 100,
                         .on_line =
                             [this](int rank, const std::string& line) {
                               std::lock_guard lock(mutex);
                               log.push_back(absl::StrCat("[rank ", rank, "] ", line));
                             },
                         .on_give_up = [this](absl::Status status) { cluster->Fail(status); }});
    EXPECT_TRUE(started.ok()) << started.status();
    launcher = *std::move(started);
    cluster->Start([this](RunnerEvent event) { events.Push(std::move(event)); });
  }
  ~LaunchedCluster() {
    cluster->Stop();
    launcher->Stop(absl::Seconds(5));
  }
  std::string Log() {
    std::lock_guard lock(mutex);
    return absl::StrJoin(log, "\n");
  }

  Events events;
  std::mutex mutex;
  std::vector<std::string> log;
  std::unique_ptr<Cluster> cluster;
  std::unique_ptr<Launcher> launcher;
};

struct Continuation {
  std::vector<int32_t> tokens;
  std::string logits;  // of every position
};

// One sequence: its prompt in one step, then greedy tokens one by one.
struct Generation {
  std::vector<int32_t> sequence;
  int num_prompt_tokens = 0;
  int num_cached = 0;
  uint64_t step = 0;

  StepPlan NextPlan(uint64_t epoch) {
    SequencePlan plan = {.sequence_id = 7,
                         .tokens = {sequence.begin() + num_cached, sequence.end()},
                         .start = num_cached,
                         .num_prompt_tokens = std::max(0, num_prompt_tokens - num_cached),
                         .block_table = {2},  // of 64 tokens
                         .state_slot = 1,
                         .draw_token = true,
                         .return_logits = true};
    num_cached = static_cast<int>(sequence.size());
    return {.epoch = epoch, .step = step++, .sequences = {plan}};
  }
};

Continuation Generate(LaunchedCluster& run, uint64_t epoch, const std::vector<int32_t>& prompt,
                      int num_tokens) {
  Generation generation = {.sequence = prompt,
                           .num_prompt_tokens = static_cast<int>(prompt.size())};
  Continuation continuation;
  for (int i = 0; i < num_tokens; ++i) {
    run.cluster->Submit(generation.NextPlan(epoch));
    const StepResult result = run.events.Next<StepResult>();
    if (result.sequences.size() != 1) {
      ADD_FAILURE() << "step " << i << ": " << run.Log();
      break;
    }
    continuation.tokens.push_back(result.sequences[0].token);
    continuation.logits += result.sequences[0].logits;
    generation.sequence.push_back(result.sequences[0].token);
  }
  return continuation;
}

struct ExpectedCase {
  std::vector<int32_t> prompt;
  std::vector<int32_t> tokens;
};

// A greedy continuation by transformers.
ExpectedCase Expected(int max_tokens) {
  const auto cases = nlohmann::json::parse(
      ReadFile(std::string(PLUMBLINE_SOURCE_DIR) + "/deploy/demo_model/expected.json"))["cases"];
  ExpectedCase expected = {cases[0]["prompt_token_ids"], cases[0]["token_ids"]};
  if (static_cast<int>(expected.tokens.size()) > max_tokens) expected.tokens.resize(max_tokens);
  return expected;
}

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

TEST(ClusterTest, AModelThatCannotBeHeldEndsTheRunWithOneCause) {
  const std::string dir = testing::TempDir() + absl::StrCat("/cluster_test_", getpid());
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

// A process with all that it wrote to stderr.
class Process {
 public:
  Process(std::vector<std::string> command, const std::string& input) {
    auto child = StartChild(command, input + "\n");
    EXPECT_TRUE(child.ok()) << child.status();
    if (child.ok()) child_ = *child;
  }
  ~Process() {
    if (!ended_) {
      kill(pid(), SIGKILL);
      waitpid(pid(), nullptr, 0);
    }
    close(child_.stderr_fd);
  }
  pid_t pid() const { return child_.pid; }

  // Reads until the text has come, or, when it is empty, until the process has closed its stderr.
  bool WaitFor(const std::string& text, absl::Duration patience = kPatience) {
    const absl::Time deadline = absl::Now() + patience;
    while (text.empty() || output_.find(text) == std::string::npos) {
      const absl::Duration left = deadline - absl::Now();
      pollfd readable = {.fd = child_.stderr_fd, .events = POLLIN};
      if (left <= absl::ZeroDuration() ||
          poll(&readable, 1, static_cast<int>(absl::ToInt64Milliseconds(left))) <= 0) {
        return false;
      }
      char buffer[4096];
      const ssize_t count = read(child_.stderr_fd, buffer, sizeof(buffer));
      if (count == 0) return text.empty();
      if (count > 0) output_.append(buffer, count);
    }
    return true;
  }
  // Its exit code, or -1 when it does not end in time or was killed.
  int WaitForEnd(absl::Duration patience = kPatience) {
    if (!WaitFor("", patience)) return -1;
    int status = 0;
    waitpid(pid(), &status, 0);
    ended_ = true;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  const std::string& output() const { return output_; }

 private:
  ChildProcess child_;
  std::string output_;
  bool ended_ = false;
};

std::vector<std::string> With(std::vector<std::string> command,
                              std::initializer_list<std::string> more) {
  command.insert(command.end(), more);
  return command;
}

TEST(ClusterTest, StrangersAndDoublesAreRefusedWithALine) {
  ClusterOptions options = DemoOptions({.tp = 2, .pp = 1});
  const std::string token = options.join_token;
  Events events;
  auto cluster = Cluster::Create(std::move(options));
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  (*cluster)->Start([&](RunnerEvent event) { events.Push(std::move(event)); });
  const std::vector<std::string> program = WorkerProgram((*cluster)->worker_address());

  Process wrong_token(program, std::string(token.size(), '0'));
  EXPECT_EQ(wrong_token.WaitForEnd(), 1);
  EXPECT_THAT(wrong_token.output(), HasSubstr("the join token is wrong"));
  Process wrong_build(With(program, {"--build", "other"}), token);
  EXPECT_EQ(wrong_build.WaitForEnd(), 1);
  EXPECT_THAT(wrong_build.output(), HasSubstr("is build other, the coordinator is test"));
  Process no_such_rank(With(program, {"--rank", "2"}), token);
  EXPECT_EQ(no_such_rank.WaitForEnd(), 1);
  EXPECT_THAT(no_such_rank.output(), HasSubstr("wants rank 2; there are ranks 0 to 1"));

  Process first(With(program, {"--rank", "1"}), token);
  Process second(With(program, {"--rank", "0"}), token);
  EXPECT_EQ(events.Next<RunnerReady>().epoch, 1u);
  Process doubled(With(program, {"--rank", "1"}), token);
  EXPECT_EQ(doubled.WaitForEnd(), 1);
  EXPECT_THAT(doubled.output(), HasSubstr("rank 1 is already held by"));
  EXPECT_THAT(doubled.output(), HasSubstr(absl::StrCat(first.pid())));
  Process surplus(program, token);
  EXPECT_EQ(surplus.WaitForEnd(), 1);
  EXPECT_THAT(surplus.output(), HasSubstr("all 2 ranks are held"));

  // None of them disturbed the run; when it stops, its workers go in good order.
  EXPECT_TRUE((*cluster)->Snapshot().ready);
  (*cluster)->Stop();
  EXPECT_EQ(first.WaitForEnd(absl::Seconds(5)), 0) << first.output();
  EXPECT_EQ(second.WaitForEnd(absl::Seconds(5)), 0) << second.output();
  EXPECT_EQ(first.output(), "");
}

TEST(ClusterTest, OnlyWorkersWithACertificateOfItsAuthorityAndTheTokenGetIn) {
  const TestCertificates& certificates = TestCertificates::Get();
  ClusterOptions options = DemoOptions({.tp = 2, .pp = 1});
  options.tls = certificates.Identity("server", "ca");
  const std::string token = options.join_token;
  Events events;
  auto cluster = Cluster::Create(std::move(options));
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  (*cluster)->Start([&](RunnerEvent event) { events.Push(std::move(event)); });
  const std::vector<std::string> plain = WorkerProgram((*cluster)->worker_address());
  const auto with = [&](const std::string& name, const std::string& authority) {
    const TlsFiles files = certificates.Files(name, authority);
    return With(plain, {"--cluster-cert", files.certificate, "--cluster-key", files.key, "--cluster-ca", files.ca});
  };

  Process no_certificate(plain, token);
  EXPECT_EQ(no_certificate.WaitForEnd(), 1);
  EXPECT_THAT(no_certificate.output(), HasSubstr("does it want a certificate (--cluster-cert"));
  Process of_another_authority(with("stranger", "ca"), token);
  EXPECT_EQ(of_another_authority.WaitForEnd(), 1);
  EXPECT_THAT(of_another_authority.output(), HasSubstr("refuses this worker's certificate"));
  Process that_trusts_another(with("client", "other_ca"), token);
  EXPECT_EQ(that_trusts_another.WaitForEnd(), 1);
  EXPECT_THAT(that_trusts_another.output(), HasSubstr("certificate verify failed"));
  Process with_another_token(with("client", "ca"), std::string(token.size(), '0'));
  EXPECT_EQ(with_another_token.WaitForEnd(), 1);
  EXPECT_THAT(with_another_token.output(), HasSubstr("the join token is wrong"));

  Process first(with("client", "ca"), token), second(with("server", "ca"), token);
  EXPECT_EQ(events.Next<RunnerReady>().epoch, 1u);
  (*cluster)->Stop();
  EXPECT_EQ(first.WaitForEnd(absl::Seconds(5)), 0) << first.output();
  EXPECT_EQ(second.WaitForEnd(absl::Seconds(5)), 0) << second.output();
}

TEST(ClusterTest, AWorkerTellsACoordinatorOfAnotherHostOrWithoutTls) {
  const TestCertificates& certificates = TestCertificates::Get();
  const TlsFiles files = certificates.Files("client", "ca");
  for (const char* name : {"elsewhere", ""}) {
    ClusterOptions options = DemoOptions({});
    options.tls = certificates.Identity(name, *name == '\0' ? "" : "ca");
    const std::string token = options.join_token;
    auto cluster = Cluster::Create(std::move(options));
    ASSERT_TRUE(cluster.ok()) << cluster.status();
    Process worker(With(WorkerProgram((*cluster)->worker_address()),
                        {"--cluster-cert", files.certificate, "--cluster-key", files.key, "--cluster-ca", files.ca}),
                   token);
    EXPECT_EQ(worker.WaitForEnd(), 1);
    EXPECT_THAT(worker.output(), HasSubstr(*name == '\0' ? "wrong version number" : "127.0.0.1 is not in peer certificate"));
  }
}

TEST(ClusterTest, AListeningAddressInUseIsTold) {
  auto first = Cluster::Create(DemoOptions({}));
  ASSERT_TRUE(first.ok());
  ClusterOptions options = DemoOptions({});
  options.worker_listen = (*first)->worker_address();
  const auto second = Cluster::Create(std::move(options));
  ASSERT_TRUE(absl::IsUnavailable(second.status()));
  EXPECT_THAT(second.status().message(), HasSubstr((*first)->worker_address()));
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
