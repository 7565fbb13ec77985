// What tests of the cluster of worker processes share: a cluster whose workers are real processes, its events, one sequence
// generated step by step on it, and processes that join by themselves.
#pragma once

#include "coordinator/cluster/cluster.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <fstream>
#include <mutex>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "coordinator/cluster/child_process.h"
#include "coordinator/cluster/join_token.h"
#include "coordinator/cluster/launcher.h"

namespace plumbline {
namespace {

using ::testing::HasSubstr;

const std::string kDemoModel = std::string(PLUMBLINE_SOURCE_DIR) + "/deploy/demo_model/model";
constexpr absl::Duration kPatience = absl::Minutes(5);  // of a busy machine, and of one that is watched by a sanitizer

inline std::string ReadFile(const std::string& path) {
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

inline ClusterOptions DemoOptions(Mesh mesh) {
  return {.join_token = MakeJoinToken(),
          .build = "test",
          .mesh = mesh,
          .model_dir = kDemoModel,
          .config_json = ReadFile(kDemoModel + "/config.json"),
          .limits = {.max_tokens = 1024, .max_sequences = 4, .max_step_tokens = 128}};
}

inline std::vector<std::string> WorkerProgram(const std::string& address) {
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

inline Continuation Generate(LaunchedCluster& run, uint64_t epoch,
                             const std::vector<int32_t>& prompt, int num_tokens) {
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
inline ExpectedCase Expected(int max_tokens) {
  const auto cases = nlohmann::json::parse(
      ReadFile(std::string(PLUMBLINE_SOURCE_DIR) + "/deploy/demo_model/expected.json"))["cases"];
  ExpectedCase expected = {cases[0]["prompt_token_ids"], cases[0]["token_ids"]};
  if (static_cast<int>(expected.tokens.size()) > max_tokens) expected.tokens.resize(max_tokens);
  return expected;
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

inline std::vector<std::string> With(std::vector<std::string> command,
                                     std::initializer_list<std::string> more) {
  command.insert(command.end(), more);
  return command;
}

}  // namespace
}  // namespace plumbline
