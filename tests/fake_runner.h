// What tests of the engine share: runners over a FakeCluster, requests, and a sink that collects.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "coordinator/engine/engine.h"
#include "gtest/gtest.h"
#include "tests/fake_cluster.h"

namespace plumbline {

inline constexpr ClusterCapacity kRoomy{
    .num_blocks = 64, .num_state_slots = 8, .max_step_tokens = 256, .pipeline_stages = 1};

// Runs every step inside Submit, on the engine thread. The cluster appears with Start unless told
// otherwise.
class InlineRunner : public StepRunner {
 public:
  explicit InlineRunner(const ClusterCapacity& capacity = kRoomy, bool ready_at_start = true)
      : capacity_(capacity), ready_at_start_(ready_at_start) {}

  void Start(std::function<void(RunnerEvent)> listener) override {
    listener_ = std::move(listener);
    if (ready_at_start_) Announce(1);
  }
  void Submit(StepPlan plan) override {
    if (hold) return;
    StepResult result = cluster_->Run(plan);
    if (damage) damage(result);
    listener_(std::move(result));
  }
  void Stop() override {}

  void Announce(uint64_t epoch) {
    cluster_.emplace(capacity_);
    listener_(RunnerReady{.epoch = epoch, .capacity = capacity_});
  }
  void Tell(RunnerEvent event) { listener_(std::move(event)); }
  const FakeCluster& cluster() const { return *cluster_; }

  std::atomic<bool> hold = false;  // steps never finish
  std::function<void(StepResult&)> damage;

 private:
  const ClusterCapacity capacity_;
  std::optional<FakeCluster> cluster_;
  const bool ready_at_start_;
  std::function<void(RunnerEvent)> listener_;
};

// A thread of its own, as a cluster has: runs steps in order, and loses the cluster by chance.
class ThreadedRunner : public StepRunner {
 public:
  ThreadedRunner(const ClusterCapacity& capacity, uint32_t seed, uint32_t loss_per_mille)
      : capacity_(capacity), random_(seed), loss_per_mille_(loss_per_mille) {}
  ~ThreadedRunner() override { Stop(); }

  void Start(std::function<void(RunnerEvent)> listener) override {
    listener_ = std::move(listener);
    thread_ = std::thread([this] { Run(); });
  }
  void Submit(StepPlan plan) override {
    std::lock_guard lock(mutex_);
    if (plan.epoch != epoch_) return;
    steps_.push_back(std::move(plan));
    work_came_.notify_one();
  }
  void Stop() override {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
      work_came_.notify_one();
    }
    if (thread_.joinable()) thread_.join();
  }

  std::vector<std::string> problems() {
    std::lock_guard lock(mutex_);
    return problems_;
  }

 private:
  void Run() {
    while (NewEpoch()) {
      FakeCluster cluster(capacity_);
      std::optional<StepResult> last;
      while (std::optional<StepPlan> plan = Next()) {
        if (random_() % 1000 < loss_per_mille_) break;
        last = cluster.Run(*plan);
        listener_(*last);
      }
      std::lock_guard lock(mutex_);
      problems_.insert(problems_.end(), cluster.problems().begin(), cluster.problems().end());
      if (last) stale_ = last;
    }
  }

  bool NewEpoch() {
    uint64_t epoch;
    std::optional<StepResult> stale;
    {
      std::lock_guard lock(mutex_);
      if (stopping_) return false;
      steps_.clear();
      epoch = ++epoch_;
      stale = stale_;
    }
    if (epoch > 1) listener_(RunnerLost{.epoch = epoch - 1, .reason = absl::UnavailableError("x")});
    listener_(RunnerReady{.epoch = epoch, .capacity = capacity_});
    if (stale) listener_(*stale);  // a result that was under way when its cluster was lost
    return true;
  }

  std::optional<StepPlan> Next() {
    std::unique_lock lock(mutex_);
    work_came_.wait(lock, [this] { return stopping_ || !steps_.empty(); });
    if (stopping_) return std::nullopt;
    if (static_cast<int>(steps_.size()) > capacity_.pipeline_stages) {
      problems_.push_back("too many steps in flight");
    }
    StepPlan plan = std::move(steps_.front());
    steps_.pop_front();
    return plan;
  }

  const ClusterCapacity capacity_;
  std::mt19937 random_;
  const uint32_t loss_per_mille_;
  std::function<void(RunnerEvent)> listener_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable work_came_;
  uint64_t epoch_ = 0;
  std::deque<StepPlan> steps_;
  std::optional<StepResult> stale_;
  std::vector<std::string> problems_;
  bool stopping_ = false;
  std::thread thread_;
};

inline EngineOptions Options() { return {.max_context_tokens = 4096, .vocab_size = kFakeVocab}; }

inline GenerationRequest Prompt(int64_t num_prompt, int64_t max_tokens, uint64_t seed = 1) {
  GenerationRequest request;
  for (int64_t i = 0; i < num_prompt; ++i) request.prompt.push_back((i * 11 + seed) % kFakeVocab);
  request.max_tokens = max_tokens;
  request.sampling.seed = seed;
  return request;
}

// Everything a sink was given.
struct Collected {
  std::mutex mutex;
  std::condition_variable ended;
  GenerationOutput all;
  int num_outputs = 0;
  int num_ends = 0;
  int num_prompt_deliveries = 0;
  int num_after_end = 0;

  // False when no end came in time.
  bool Wait() {
    std::unique_lock lock(mutex);
    return ended.wait_for(lock, std::chrono::seconds(20), [this] { return num_ends > 0; });
  }

  Engine::Sink Sink() {
    return [this](GenerationOutput output) {
      std::lock_guard lock(mutex);
      ++num_outputs;
      num_after_end += num_ends;
      all.text += output.text;
      all.tokens.insert(all.tokens.end(), output.tokens.begin(), output.tokens.end());
      all.logprobs.insert(all.logprobs.end(), output.logprobs.begin(), output.logprobs.end());
      all.logits += output.logits;
      if (!output.prompt_logprobs.empty()) {
        ++num_prompt_deliveries;
        all.prompt_logprobs = output.prompt_logprobs;
      }
      if (output.finish == FinishReason::kNone) return;
      all.finish = output.finish;
      all.status = output.status;
      all.stop_match = output.stop_match;
      ++num_ends;
      ended.notify_all();
    };
  }
};

inline GenerationOutput RunOne(Engine& engine, GenerationRequest request) {
  Collected collected;
  const auto handle = engine.Submit(std::move(request), collected.Sink());
  if (!handle.ok()) {
    ADD_FAILURE() << handle.status();
    return {};
  }
  if (!collected.Wait()) {
    ADD_FAILURE() << "the request does not end";
    std::abort();  // its sink is on this stack
  }
  engine.Drain(absl::Now() + absl::Seconds(20));  // the sink has returned
  return collected.all;
}

inline std::vector<float> Values(const std::vector<TokenLogprob>& logprobs) {
  std::vector<float> values;
  for (const TokenLogprob& logprob : logprobs) values.push_back(logprob.logprob);
  return values;
}

template <typename Predicate>
bool Eventually(Predicate predicate) {
  for (int i = 0; i < 5000; ++i) {
    if (predicate()) return true;
    absl::SleepFor(absl::Milliseconds(1));
  }
  return false;
}

}  // namespace plumbline
