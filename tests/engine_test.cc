// The engine's rules one by one, over a fake cluster that runs each step inside Submit: ends,
// limits, deadlines, refusals, draining, failures.
#include "coordinator/engine/engine.h"

#include <numeric>
#include <atomic>
#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/fake_runner.h"

namespace plumbline {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

GenerationOutput RunAlone(GenerationRequest request, EngineOptions options = Options(),
                          const Tokenizer* tokenizer = nullptr) {
  InlineRunner runner;
  const std::unique_ptr<Engine> engine = Engine::Create(options, &runner, tokenizer);
  GenerationOutput output = RunOne(*engine, std::move(request));
  EXPECT_THAT(runner.cluster().problems(), IsEmpty());
  return output;
}

// ---- how requests end

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

TEST(EngineTest, DeadlineKeepsWhatWasGenerated) {
  InlineRunner runner;
  int num_steps = 0;
  runner.damage = [&](StepResult&) { runner.hold = ++num_steps == 3; };
  const std::unique_ptr<Engine> engine = Engine::Create(Options(), &runner, nullptr);
  GenerationRequest request = Prompt(10, 10);
  request.deadline = absl::Now() + absl::Milliseconds(100);
  const GenerationOutput output = RunOne(*engine, request);
  EXPECT_EQ(output.finish, FinishReason::kTimeout);
  EXPECT_EQ(output.status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(output.tokens, Undisturbed(Prompt(10, 10), 3).tokens);
  EXPECT_TRUE(Eventually([&] { return engine->Stats().blocks_used == 0; }));
}

TEST(EngineTest, StatsTellWhatKeysDoAndHowLongSequencesWaited) {
  InlineRunner runner;
  runner.hold = true;
  EngineOptions options = Options();
  options.max_running_sequences = 1;
  std::vector<std::unique_ptr<Collected>> collected;
  const std::unique_ptr<Engine> engine = Engine::Create(options, &runner, nullptr);
  for (int64_t key_id = 0; key_id < 60; ++key_id) {
    GenerationRequest request = Prompt(10, 10);
    request.owner = {.key_id = key_id, .name = "same"};
    collected.push_back(std::make_unique<Collected>());
    ASSERT_TRUE(engine->Submit(request, collected.back()->Sink()).ok());
  }
  ASSERT_TRUE(Eventually([&] { return engine->Stats().keys.size() == 51; }));
  ASSERT_TRUE(Eventually([&] { return engine->Stats().keys.back().queued == 10; }));
  const EngineStats stats = engine->Stats();
  EXPECT_EQ(stats.keys[0].key_id, 0);
  EXPECT_EQ(stats.keys[0].running + stats.keys[0].queued, 1);
  EXPECT_EQ(stats.keys[49].key_id, 49);
  EXPECT_EQ(stats.keys[50].key_id, -1);
  EXPECT_EQ(stats.keys[50].name, "others");
  const auto& counts = stats.queue_times.counts;
  EXPECT_EQ(std::accumulate(counts.begin(), counts.end(), uint64_t{0}), 1);  // the one that began
}

TEST(EngineTest, CancelFreesTheSequenceAndForgetsItsHandle) {
  InlineRunner runner;
  runner.hold = true;
  const std::unique_ptr<Engine> engine = Engine::Create(Options(), &runner, nullptr);
  Collected collected;
  const uint64_t handle = *engine->Submit(Prompt(10, 10), collected.Sink());
  EXPECT_TRUE(Eventually([&] { return engine->Stats().blocks_used == 1; }));
  engine->Cancel(handle);
  ASSERT_TRUE(collected.Wait());
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
  ASSERT_TRUE(second.Wait());
  EXPECT_EQ(second.all.tokens, Undisturbed(Prompt(5, 4), 4).tokens);
}

// ---- refusals

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
  ASSERT_TRUE(too_large.Wait());
  ASSERT_TRUE(right.Wait());
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

TEST(EngineTest, AClusterLostForGoodEndsAllAndRefusesMore) {
  InlineRunner runner;
  runner.hold = true;
  const std::unique_ptr<Engine> engine = Engine::Create(Options(), &runner, nullptr);
  Collected collected;
  ASSERT_TRUE(engine->Submit(Prompt(5, 5), collected.Sink()).ok());
  runner.Tell(RunnerLost{.epoch = 1, .reason = absl::InternalError("rank 3 burnt"), .fatal = true});
  ASSERT_TRUE(collected.Wait());
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

}  // namespace
}  // namespace plumbline
