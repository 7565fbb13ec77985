// The engine over a fake cluster with a thread of its own, simulated over hundreds of seeds:
// arrivals, cancellations, lost clusters, caches too small for all. Every stream gets the tokens it
// would have had, once, and ends once.
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "coordinator/engine/engine.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/fake_runner.h"

namespace plumbline {
namespace {

using ::testing::IsEmpty;

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
    const int64_t key_id = random() % 3;
    request.owner = {.key_id = key_id, .priority = key_id / 2, .share = 1 + key_id};
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
    std::lock_guard lock(got.mutex);
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

}  // namespace
}  // namespace plumbline
