// The engine with a fake cluster: simulated with threads over hundreds of seeds (arrivals,
// cancellations, lost clusters, small caches), and its rules one by one: stop strings,
// end-of-sequence, lengths, deadlines, bounds, draining.
#include "coordinator/engine/engine.h"

#include <atomic>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <thread>

#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "coordinator/engine/text_stream.h"
#include "coordinator/text/tokenizer.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/fake_cluster.h"

namespace plumbline {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr ClusterCapacity kRoomy{
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
    absl::MutexLock lock(&mutex_);
    if (plan.epoch == epoch_) steps_.push_back(std::move(plan));
  }
  void Stop() override {
    {
      absl::MutexLock lock(&mutex_);
      stopping_ = true;
    }
    if (thread_.joinable()) thread_.join();
  }

  std::vector<std::string> problems() {
    absl::MutexLock lock(&mutex_);
    return problems_;
  }

 private:
  bool HasWork() const { return stopping_ || !steps_.empty(); }

  void Run() {
    while (NewEpoch()) {
      FakeCluster cluster(capacity_);
      std::optional<StepResult> last;
      while (std::optional<StepPlan> plan = Next()) {
        if (random_() % 1000 < loss_per_mille_) break;
        last = cluster.Run(*plan);
        listener_(*last);
      }
      absl::MutexLock lock(&mutex_);
      problems_.insert(problems_.end(), cluster.problems().begin(), cluster.problems().end());
      if (last) stale_ = last;
    }
  }

  bool NewEpoch() {
    uint64_t epoch;
    std::optional<StepResult> stale;
    {
      absl::MutexLock lock(&mutex_);
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
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(this, &ThreadedRunner::HasWork));
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
  absl::Mutex mutex_;
  uint64_t epoch_ = 0;
  std::deque<StepPlan> steps_;
  std::optional<StepResult> stale_;
  std::vector<std::string> problems_;
  bool stopping_ = false;
  std::thread thread_;
};

EngineOptions Options() { return {.max_context_tokens = 4096, .vocab_size = kFakeVocab}; }

GenerationRequest Prompt(int64_t num_prompt, int64_t max_tokens, uint64_t seed = 1) {
  GenerationRequest request;
  for (int64_t i = 0; i < num_prompt; ++i) request.prompt.push_back((i * 11 + seed) % kFakeVocab);
  request.max_tokens = max_tokens;
  request.sampling.seed = seed;
  return request;
}

// Everything a sink was given.
struct Collected {
  absl::Mutex mutex;
  GenerationOutput all;
  int num_outputs = 0;
  int num_ends = 0;
  int num_prompt_deliveries = 0;
  int num_after_end = 0;
  absl::Notification done;

  Engine::Sink Sink() {
    return [this](GenerationOutput output) {
      absl::MutexLock lock(&mutex);
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
      if (num_ends++ == 0) done.Notify();
    };
  }
};

GenerationOutput RunOne(Engine& engine, GenerationRequest request) {
  Collected collected;
  const auto handle = engine.Submit(std::move(request), collected.Sink());
  if (!handle.ok()) {
    ADD_FAILURE() << handle.status();
    return {};
  }
  if (!collected.done.WaitForNotificationWithTimeout(absl::Seconds(20))) {
    ADD_FAILURE() << "the request does not end";
    std::abort();  // its sink is on this stack
  }
  engine.Drain(absl::Now() + absl::Seconds(20));  // the sink has returned
  return collected.all;
}

GenerationOutput RunAlone(GenerationRequest request, EngineOptions options = Options(),
                          const Tokenizer* tokenizer = nullptr) {
  InlineRunner runner;
  const std::unique_ptr<Engine> engine = Engine::Create(options, &runner, tokenizer);
  GenerationOutput output = RunOne(*engine, std::move(request));
  EXPECT_THAT(runner.cluster().problems(), IsEmpty());
  return output;
}

std::vector<float> Values(const std::vector<TokenLogprob>& logprobs) {
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

// ---- simulation
// -----------------------------------------------------------------------------------------------------

struct Totals {
  int finished = 0;
  int cancelled = 0;
  uint64_t preemptions = 0;
  uint64_t replays = 0;
};

void RunSeed(uint32_t seed, Totals& totals) {
  std::mt19937 random(seed);
  const ClusterCapacity capacity{
      .num_blocks = static_cast<int64_t>(4 + random() % 6),
      .num_state_slots = static_cast<int64_t>(random() % 2 == 0 ? 0 : 1 + random() % 6),
      .max_step_tokens = static_cast<int64_t>(64 + random() % 200),
      .pipeline_stages = static_cast<int>(1 + random() % 4)};
  ThreadedRunner runner(capacity, seed, random() % 3 * 10);
  EngineOptions options = Options();
  options.max_running_sequences = 1 + random() % 8;
  const std::unique_ptr<Engine> engine = Engine::Create(options, &runner, nullptr);
  const int num_requests = 2 + random() % 10;
  std::vector<GenerationRequest> requests(num_requests);
  std::vector<Collected> collected(num_requests);
  std::vector<uint64_t> handles;
  for (int i = 0; i < num_requests; ++i) {
    GenerationRequest& request = requests[i];
    request = Prompt(1 + random() % 150, random() % 90, random());
    if (random() % 4 == 0) request.sampling.repetition_penalty = 1.5;
    if (random() % 4 == 0) request.sampling.logit_bias = {{9, 2}, {4, -3}};
    if (random() % 3 == 0) request.num_prompt_logprobs = random() % 3;
    if (random() % 3 == 0) request.num_top_logprobs = random() % 3;
    if (random() % 4 == 0) request.return_logits = true;
    const auto handle = engine->Submit(request, collected[i].Sink());
    ASSERT_TRUE(handle.ok()) << handle.status();
    handles.push_back(*handle);
    if (random() % 4 == 0) std::this_thread::yield();
    if (random() % 8 == 0) engine->Cancel(handles[random() % handles.size()]);
  }
  ASSERT_TRUE(engine->Drain(absl::Now() + absl::Seconds(60))) << "requests do not end";
  EXPECT_TRUE(Eventually([&] { return engine->Stats().blocks_used == 0; }));
  EXPECT_EQ(engine->Stats().state_slots_used, 0);
  EXPECT_EQ(engine->Stats().running + engine->Stats().queued, 0);
  totals.preemptions += engine->Stats().preemptions;
  totals.replays += engine->Stats().replays;
  EXPECT_THAT(runner.problems(), IsEmpty());
  for (int i = 0; i < num_requests; ++i) {
    Collected& got = collected[i];
    absl::MutexLock lock(&got.mutex);
    ASSERT_EQ(got.num_ends, 1);
    EXPECT_EQ(got.num_after_end, 0);
    EXPECT_LE(got.num_prompt_deliveries, 1);
    const FakeAnswer expected = Undisturbed(requests[i], requests[i].max_tokens);
    if (got.all.finish == FinishReason::kCancelled) {
      ++totals.cancelled;
      ASSERT_LE(got.all.tokens.size(), expected.tokens.size());
      EXPECT_TRUE(
          std::equal(got.all.tokens.begin(), got.all.tokens.end(), expected.tokens.begin()));
      continue;
    }
    ++totals.finished;
    EXPECT_EQ(got.all.finish, FinishReason::kLength);
    EXPECT_EQ(got.all.tokens, expected.tokens);
    if (requests[i].num_top_logprobs >= 0) {
      EXPECT_EQ(Values(got.all.logprobs), expected.logprobs);
    } else {
      EXPECT_THAT(got.all.logprobs, IsEmpty());
    }
    if (requests[i].num_prompt_logprobs >= 0) {
      EXPECT_EQ(Values(got.all.prompt_logprobs), expected.prompt_logprobs);
    }
    EXPECT_TRUE(got.all.logits == expected.logits);
  }
}

TEST(EngineSimulationTest, StreamsGoOnWithTheTokensTheyWouldHaveHad) {
  Totals totals;
  for (uint32_t seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE(seed);
    RunSeed(seed, totals);
    if (HasFailure()) return;
  }
  EXPECT_GT(totals.finished, 1000);  // the seeds must reach what they are for
  EXPECT_GT(totals.cancelled, 10);
  EXPECT_GT(totals.preemptions, 50);
  EXPECT_GT(totals.replays, 100);
}

// ---- how requests end
// -----------------------------------------------------------------------------------------------

TEST(EngineTest, ReachesMaxTokens) {
  const GenerationOutput output = RunAlone(Prompt(100, 12));
  EXPECT_EQ(output.finish, FinishReason::kLength);
  EXPECT_EQ(output.tokens, Undisturbed(Prompt(100, 12), 12).tokens);
}

TEST(EngineTest, ReachesTheContextLimit) {
  EngineOptions options = Options();
  options.max_context_tokens = 105;
  const GenerationOutput output = RunAlone(Prompt(100, 12), options);
  EXPECT_EQ(output.finish, FinishReason::kLength);
  EXPECT_EQ(output.tokens, Undisturbed(Prompt(100, 12), 5).tokens);
}

TEST(EngineTest, EndOfSequenceTokenEndsTheOutputUnlessIgnored) {
  const std::vector<int32_t> tokens = Undisturbed(Prompt(30, 8), 8).tokens;
  EngineOptions options = Options();
  options.eos_token_ids = {tokens[3]};
  GenerationRequest request = Prompt(30, 8);
  GenerationOutput output = RunAlone(request, options);
  EXPECT_EQ(output.finish, FinishReason::kStop);
  EXPECT_EQ(output.tokens, std::vector<int32_t>(tokens.begin(), tokens.begin() + 4));
  request.ignore_eos = true;
  output = RunAlone(request, options);
  EXPECT_EQ(output.finish, FinishReason::kLength);
  EXPECT_EQ(output.tokens, tokens);
  request.stop_token_ids = {tokens[5]};
  output = RunAlone(request, options);
  EXPECT_EQ(output.finish, FinishReason::kStop);
  EXPECT_EQ(output.tokens.size(), 6);
}

TEST(EngineTest, ZeroMaxTokensScoresThePromptOnly) {
  GenerationRequest request = Prompt(200, 0);
  request.num_prompt_logprobs = 2;
  const GenerationOutput output = RunAlone(request);
  EXPECT_EQ(output.finish, FinishReason::kLength);
  EXPECT_THAT(output.tokens, IsEmpty());
  EXPECT_EQ(Values(output.prompt_logprobs), Undisturbed(request, 0).prompt_logprobs);
  for (size_t i = 0; i < output.prompt_logprobs.size(); ++i) {
    EXPECT_EQ(output.prompt_logprobs[i].token, request.prompt[i + 1]);
    EXPECT_EQ(output.prompt_logprobs[i].top_tokens.size(), 2);
  }
}

TEST(EngineTest, PromptAndGeneratedLogprobsHaveTheirOwnNumberOfAlternatives) {
  GenerationRequest request = Prompt(70, 3);
  request.num_prompt_logprobs = 1;
  request.num_top_logprobs = 4;
  const GenerationOutput output = RunAlone(request);
  ASSERT_EQ(output.logprobs.size(), 3);
  for (const TokenLogprob& logprob : output.logprobs) EXPECT_EQ(logprob.top_tokens.size(), 4);
  for (const TokenLogprob& logprob : output.prompt_logprobs)
    EXPECT_EQ(logprob.top_tokens.size(), 1);
}

TEST(EngineTest, DeadlineEndsARequestThatWaitsAndOneThatRuns) {
  for (const bool running : {false, true}) {
    InlineRunner runner(kRoomy, running);
    runner.hold = true;
    const std::unique_ptr<Engine> engine = Engine::Create(Options(), &runner, nullptr);
    GenerationRequest request = Prompt(10, 10);
    request.deadline = absl::Now() + absl::Milliseconds(30);
    const GenerationOutput output = RunOne(*engine, request);
    EXPECT_EQ(output.finish, FinishReason::kError);
    EXPECT_EQ(output.status.code(), absl::StatusCode::kDeadlineExceeded);
    EXPECT_TRUE(Eventually([&] { return engine->Stats().blocks_used == 0; }));
  }
}

TEST(EngineTest, CancelFreesTheSequenceAndForgetsItsHandle) {
  InlineRunner runner;
  runner.hold = true;
  const std::unique_ptr<Engine> engine = Engine::Create(Options(), &runner, nullptr);
  Collected collected;
  const uint64_t handle = *engine->Submit(Prompt(10, 10), collected.Sink());
  EXPECT_TRUE(Eventually([&] { return engine->Stats().blocks_used == 1; }));
  engine->Cancel(handle);
  collected.done.WaitForNotification();
  EXPECT_EQ(collected.all.status.code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE(Eventually([&] { return engine->Stats().blocks_used == 0; }));
  engine->Cancel(handle);
  engine->Cancel(12345);
  EXPECT_TRUE(engine->Drain(absl::Now() + absl::Seconds(5)));
  EXPECT_EQ(collected.num_ends, 1);
  EXPECT_EQ(engine->Stats().requests_cancelled, 1);
}

TEST(EngineTest, DestructionEndsEveryRequest) {
  InlineRunner runner;
  runner.hold = true;
  Collected collected[3];
  std::unique_ptr<Engine> engine = Engine::Create(Options(), &runner, nullptr);
  for (Collected& one : collected) ASSERT_TRUE(engine->Submit(Prompt(10, 10), one.Sink()).ok());
  engine.reset();
  for (Collected& one : collected) {
    EXPECT_EQ(one.num_ends, 1);
    EXPECT_EQ(one.all.finish, FinishReason::kCancelled);
  }
}

TEST(EngineTest, ASinkMaySubmitAndCancel) {
  InlineRunner runner;
  const std::unique_ptr<Engine> engine = Engine::Create(Options(), &runner, nullptr);
  Collected second;
  std::atomic<bool> submitted = false;
  const auto first = engine->Submit(Prompt(10, 3), [&](GenerationOutput) {
    if (submitted.exchange(true)) return;
    engine->Cancel(1);
    ASSERT_TRUE(engine->Submit(Prompt(5, 4), second.Sink()).ok());
  });
  ASSERT_TRUE(first.ok());
  ASSERT_TRUE(second.done.WaitForNotificationWithTimeout(absl::Seconds(20)));
  EXPECT_EQ(second.all.tokens, Undisturbed(Prompt(5, 4), 4).tokens);
}

// ---- refusals
// -------------------------------------------------------------------------------------------------------

TEST(EngineTest, RefusesWhatCanNeverRun) {
  InlineRunner runner({.num_blocks = 2, .max_step_tokens = 64});
  const std::unique_ptr<Engine> engine = Engine::Create(Options(), &runner, nullptr);
  ASSERT_TRUE(Eventually([&] { return engine->Stats().ready; }));
  const auto refusal = [&](GenerationRequest request) {
    const auto handle = engine->Submit(std::move(request), [](GenerationOutput) {});
    EXPECT_EQ(handle.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(handle.status().message());
  };
  EXPECT_THAT(refusal(Prompt(0, 5)), HasSubstr("no tokens"));
  EXPECT_THAT(refusal(Prompt(4096, 1)), HasSubstr("context of 4096"));
  EXPECT_THAT(refusal(Prompt(100, 30)), HasSubstr("128"));
  GenerationRequest request = Prompt(3, 5);
  request.prompt[1] = kFakeVocab;
  EXPECT_THAT(refusal(request), HasSubstr("prompt token 97"));
  request = Prompt(3, 5);
  request.stop = {"x"};
  EXPECT_THAT(refusal(request), HasSubstr("tokenizer"));
  request = Prompt(3, 5);
  request.sampling.temperature = std::nanf("");
  EXPECT_THAT(refusal(request), HasSubstr("temperature"));
  request = Prompt(3, 5);
  request.sampling.logit_bias = {{1, 1}, {1, 2}};
  EXPECT_THAT(refusal(request), HasSubstr("twice"));
  EXPECT_EQ(engine->Stats().requests_refused, 7);
  // The last drawn token needs no place in the cache.
  EXPECT_EQ(RunOne(*engine, Prompt(100, 29)).tokens.size(), 29);
}

TEST(EngineTest, ARequestOlderThanTheClusterIsMeasuredWhenItComes) {
  InlineRunner runner({.num_blocks = 2, .max_step_tokens = 64}, false);
  const std::unique_ptr<Engine> engine = Engine::Create(Options(), &runner, nullptr);
  Collected too_large, right;
  ASSERT_TRUE(engine->Submit(Prompt(200, 5), too_large.Sink()).ok());
  ASSERT_TRUE(engine->Submit(Prompt(20, 5), right.Sink()).ok());
  runner.Announce(1);
  too_large.done.WaitForNotification();
  right.done.WaitForNotification();
  EXPECT_EQ(too_large.all.status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(right.all.tokens.size(), 5);
}

TEST(EngineTest, QueueIsBounded) {
  InlineRunner runner;
  runner.hold = true;
  EngineOptions options = Options();
  options.max_running_sequences = 1;
  options.max_queued_requests = 2;
  std::vector<Collected> collected(4);  // outlives the engine, whose end cancels them
  const std::unique_ptr<Engine> engine = Engine::Create(options, &runner, nullptr);
  ASSERT_TRUE(engine->Submit(Prompt(5, 5), collected[0].Sink()).ok());
  ASSERT_TRUE(Eventually([&] { return engine->Stats().running == 1; }));
  ASSERT_TRUE(engine->Submit(Prompt(5, 5), collected[1].Sink()).ok());
  ASSERT_TRUE(engine->Submit(Prompt(5, 5), collected[2].Sink()).ok());
  const auto refused = engine->Submit(Prompt(5, 5), collected[3].Sink());
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(engine->Stats().queued, 2);
}

TEST(EngineTest, DrainingRefusesNewRequestsAndFinishesOldOnes) {
  InlineRunner runner(kRoomy, false);
  const std::unique_ptr<Engine> engine = Engine::Create(Options(), &runner, nullptr);
  Collected collected;
  ASSERT_TRUE(engine->Submit(Prompt(5, 5), collected.Sink()).ok());
  EXPECT_FALSE(engine->Drain(absl::Now() + absl::Milliseconds(20)));
  EXPECT_TRUE(engine->Stats().draining);
  EXPECT_EQ(engine->Submit(Prompt(5, 5), collected.Sink()).status().code(),
            absl::StatusCode::kUnavailable);
  runner.Announce(1);
  EXPECT_TRUE(engine->Drain(absl::Now() + absl::Seconds(20)));
  EXPECT_EQ(collected.all.tokens.size(), 5);
}

// ---- clusters that fail
// ---------------------------------------------------------------------------------------------

TEST(EngineTest, AClusterLostForGoodEndsAllAndRefusesMore) {
  InlineRunner runner;
  runner.hold = true;
  const std::unique_ptr<Engine> engine = Engine::Create(Options(), &runner, nullptr);
  Collected collected;
  ASSERT_TRUE(engine->Submit(Prompt(5, 5), collected.Sink()).ok());
  runner.Tell(RunnerLost{.epoch = 1, .reason = absl::InternalError("rank 3 burnt"), .fatal = true});
  collected.done.WaitForNotification();
  EXPECT_EQ(collected.all.finish, FinishReason::kError);
  EXPECT_EQ(collected.all.status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(collected.all.status.message()), HasSubstr("rank 3 burnt"));
  EXPECT_EQ(engine->Submit(Prompt(5, 5), collected.Sink()).status().code(),
            absl::StatusCode::kUnavailable);
  EXPECT_TRUE(Eventually([&] { return !engine->Stats().ready; }));
}

TEST(EngineTest, DamagedResultsEndTheirRequestWithAnError) {
  const std::vector<std::function<void(StepResult&)>> damages = {
      [](StepResult& result) { result.sequences.clear(); },
      [](StepResult& result) { result.sequences[0].sequence_id = 77; },
      [](StepResult& result) { result.sequences[0].token = kFakeVocab; },
      [](StepResult& result) { result.sequences[0].drawn.clear(); },
      [](StepResult& result) { result.sequences[0].scored.pop_back(); },
      [](StepResult& result) { result.sequences[0].logits.pop_back(); },
  };
  for (const auto& damage : damages) {
    InlineRunner runner;
    runner.damage = damage;
    const std::unique_ptr<Engine> engine = Engine::Create(Options(), &runner, nullptr);
    GenerationRequest request = Prompt(5, 5);
    request.num_top_logprobs = request.num_prompt_logprobs = 0;
    request.return_logits = true;
    const GenerationOutput output = RunOne(*engine, request);
    EXPECT_EQ(output.finish, FinishReason::kError);
    EXPECT_EQ(output.status.code(), absl::StatusCode::kInternal);
  }
}

TEST(EngineTest, ProgressIsTimedOnlyWhileWorkIsUnderWay) {
  InlineRunner runner;
  runner.hold = true;
  const std::unique_ptr<Engine> engine = Engine::Create(Options(), &runner, nullptr);
  absl::SleepFor(absl::Milliseconds(5));
  EXPECT_EQ(engine->Stats().since_progress, absl::ZeroDuration());
  Collected collected;
  const uint64_t handle = *engine->Submit(Prompt(5, 5), collected.Sink());
  EXPECT_TRUE(Eventually([&] { return engine->Stats().since_progress > absl::Milliseconds(20); }));
  engine->Cancel(handle);
  EXPECT_TRUE(engine->Drain(absl::Now() + absl::Seconds(20)));
  EXPECT_EQ(engine->Stats().since_progress, absl::ZeroDuration());
}

// ---- text
// -----------------------------------------------------------------------------------------------------------

std::string ShownInPieces(const std::string& text, std::vector<std::string> stops, size_t piece,
                          bool include_stop = false) {
  StopMatcher matcher(std::move(stops), include_stop);
  std::string shown;
  for (size_t i = 0; i < text.size(); i += piece) shown += matcher.Push(text.substr(i, piece));
  return shown + matcher.Finish() + "|" + matcher.match();
}

TEST(StopMatcherTest, HoldsBackWhatMayBeginAStopString) {
  StopMatcher matcher({"END", "\n\n"}, false);
  EXPECT_EQ(matcher.Push("one\n"), "one");
  EXPECT_EQ(matcher.Push("two E"), "\ntwo ");
  EXPECT_EQ(matcher.Push("N"), "");
  EXPECT_EQ(matcher.Push("Ough"), "ENOugh");
  EXPECT_EQ(matcher.Push("x\n\ny"), "x");
  EXPECT_EQ(matcher.match(), "\n\n");
  EXPECT_EQ(matcher.Push("more"), "");
  EXPECT_EQ(matcher.Finish(), "");
}

TEST(StopMatcherTest, WithoutAMatchNothingIsLost) {
  EXPECT_EQ(ShownInPieces("ababab", {"abac"}, 1), "ababab|");
  EXPECT_EQ(ShownInPieces("ends in ab", {"abc"}, 3), "ends in ab|");
  EXPECT_EQ(ShownInPieces("plain", {}, 2), "plain|");
}

TEST(StopMatcherTest, TheCutOfThePiecesDoesNotMatter) {
  std::mt19937 random(7);
  for (int round = 0; round < 2000; ++round) {
    std::string text;
    for (int i = 0; i < 20; ++i) text += "ab"[random() % 2];
    std::vector<std::string> stops;
    for (size_t i = 0; i < 1 + random() % 3; ++i) {
      std::string stop;
      for (size_t n = 1 + random() % 6; n > 0; --n) stop += "ab"[random() % 2];
      stops.push_back(stop);
    }
    // By definition: the shortest beginning of the text that ends with a stop string; the longest
    // of these.
    std::string expected = text + "|";
    for (size_t end = 1; end <= text.size(); ++end) {
      std::string longest;
      for (const std::string& stop : stops) {
        if (text.substr(0, end).ends_with(stop) && stop.size() > longest.size()) longest = stop;
      }
      if (longest.empty()) continue;
      expected = text.substr(0, end - longest.size()) + "|" + longest;
      break;
    }
    for (size_t piece = 1; piece <= 7; ++piece) {
      ASSERT_EQ(ShownInPieces(text, stops, piece), expected) << text;
    }
  }
}

// The engine with the demo model's tokenizer; its model says `text`.
class EngineTextTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto loaded = Tokenizer::Load(PLUMBLINE_SOURCE_DIR "/deploy/demo_model/model/tokenizer.json");
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    tokenizer_ = *std::move(loaded);
  }

  GenerationOutput Say(const std::string& text, GenerationRequest request,
                       std::vector<int32_t> eos = {}) {
    const std::vector<int32_t> tokens = *tokenizer_->Encode(text);
    InlineRunner runner;
    size_t next = 0;
    runner.damage = [&](StepResult& result) { result.sequences[0].token = tokens.at(next++); };
    EngineOptions options = Options();
    options.vocab_size = tokenizer_->vocab_size();
    options.eos_token_ids = std::move(eos);
    request.prompt = {1, 2, 3};
    request.max_tokens = static_cast<int64_t>(tokens.size());
    const std::unique_ptr<Engine> engine = Engine::Create(options, &runner, tokenizer_.get());
    GenerationOutput output = RunOne(*engine, std::move(request));
    EXPECT_TRUE(std::equal(output.tokens.begin(), output.tokens.end(), tokens.begin()));
    return output;
  }

  std::unique_ptr<Tokenizer> tokenizer_;
};

TEST_F(EngineTextTest, TextIsWhole) {
  const std::string text = "Gr\xc3\xbc\xc3\x9f dich \xf0\x9f\x98\x80 world";
  const GenerationOutput output = Say(text, {});
  EXPECT_EQ(output.text, text);
  EXPECT_EQ(output.finish, FinishReason::kLength);
}

TEST_F(EngineTextTest, AStopStringOverSeveralTokensEndsTheTextBeforeIt) {
  GenerationRequest request;
  request.stop = {"never", "k, ju"};
  GenerationOutput output = Say("The quick, jumping fox", request);
  EXPECT_EQ(output.text, "The quic");
  EXPECT_EQ(output.stop_match, "k, ju");
  EXPECT_EQ(output.finish, FinishReason::kStop);
  request.include_stop = true;
  output = Say("The quick, jumping fox", request);
  EXPECT_EQ(output.text, "The quick, ju");
}

TEST_F(EngineTextTest, HeldBackTextIsGivenWhenTheOutputEnds) {
  GenerationRequest request;
  request.stop = {" fox!"};
  const GenerationOutput output = Say("The quick fox", request);
  EXPECT_EQ(output.text, "The quick fox");
  EXPECT_EQ(output.finish, FinishReason::kLength);
}

TEST_F(EngineTextTest, TheEndOfSequenceTokenIsCountedButNotShown) {
  const int32_t eos = tokenizer_->Encode("a b")->back();
  GenerationRequest request;
  GenerationOutput output = Say("a b", request, {eos});
  EXPECT_EQ(output.text, "a");
  EXPECT_EQ(output.finish, FinishReason::kStop);
  EXPECT_EQ(output.tokens.back(), eos);
  request.include_stop = true;
  EXPECT_EQ(Say("a b", request, {eos}).text, "a b");
}

TEST(StopMatcherTest, IncludedStopStringIsShown) {
  EXPECT_EQ(ShownInPieces("go. stop here", {"stop"}, 2, true), "go. stop|stop");
}

}  // namespace
}  // namespace plumbline
