// The scheduler alone, simulated over thousands of seeds: arrivals, cancellations, lost clusters,
// caches too small for all, 1 to 4 pipeline stages. Every plan is checked by FakeCluster, every
// output equals the undisturbed one, everything ends, nothing leaks. The controls show that the
// checks can fail.
#include "coordinator/engine/scheduler.h"

#include <functional>
#include <map>
#include <memory>
#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/scheduler_simulation.h"

namespace plumbline {
namespace {

using ::testing::IsEmpty;

// Half of the prompts begin as others do, up to a random place: every block in one of two ways.
GenerationRequest RandomRequest(std::mt19937& random, const ClusterCapacity& capacity) {
  GenerationRequest request;
  const int64_t room = capacity.num_blocks * kGridTokens;
  const int64_t num_prompt = 1 + random() % std::min<int64_t>(room, random() % 2 == 0 ? 260 : 70);
  const int64_t num_common = random() % 2 == 0 ? random() % 400 : 0;
  uint64_t way = 0;
  for (int64_t i = 0; i < num_prompt; ++i) {
    if (i % kGridTokens == 0) way = random() % 2;
    const uint64_t token = i < num_common ? MixHash(way, i) : random();
    request.prompt.push_back(static_cast<int32_t>(token % kFakeVocab));
  }
  request.max_tokens = std::min<int64_t>(random() % 100, room - num_prompt + 1);
  request.sampling.seed = random();
  if (random() % 4 == 0) request.sampling.presence_penalty = 0.5;
  if (random() % 4 == 0) request.sampling.logit_bias = {{3, 1.5f}, {5, -1.f}};
  if (random() % 4 == 0) request.num_prompt_logprobs = static_cast<int32_t>(random() % 3);
  const int64_t key_id = random() % 4;
  request.owner = {.key_id = key_id, .priority = key_id == 3 ? 1 : 0, .share = 1 + key_id * 3};
  return request;
}

ClusterCapacity RandomCapacity(std::mt19937& random) {
  return {.num_blocks = static_cast<int64_t>(1 + random() % 14),
          .num_state_slots = static_cast<int64_t>(random() % 5),
          .max_step_tokens = static_cast<int64_t>(kGridTokens + random() % 200),
          .pipeline_stages = static_cast<int>(1 + random() % 4)};
}

struct Totals {
  int64_t finished = 0;
  uint64_t preemptions = 0;
  uint64_t prefix_hits = 0;
  int64_t state_loads = 0;
};

void RunSeed(uint32_t seed, Totals& totals) {
  std::mt19937 random(seed);
  const ClusterCapacity capacity = RandomCapacity(random);
  Simulation simulation(capacity, 1 + random() % 8);
  int to_arrive = 1 + random() % 14;
  const uint32_t arrivals = 20 + random() % 400;  // chances per turn, in thousandths
  const uint32_t cancellations = random() % 3;
  const uint32_t lost_clusters = random() % 3;
  int num_steps = 0;
  while (to_arrive > 0 || simulation.busy()) {
    // Generous: 14 requests of at most 360 tokens, one a step, and what lost epochs and preemptions
    // repeat.
    ASSERT_LT(++num_steps, 60000) << "a request starves";
    const uint32_t dice = random() % 1000;
    if (to_arrive > 0 && dice < arrivals) {
      simulation.Add(RandomRequest(random, capacity));
      --to_arrive;
    } else if (simulation.busy() && dice >= 1000 - cancellations) {
      auto it = simulation.sequences().begin();
      std::advance(it, random() % simulation.sequences().size());
      simulation.Cancel(it->first);
    } else if (dice >= 900 && dice < 900 + lost_clusters) {
      simulation.NewEpoch();
    }
    if (dice % 2 == 0) {
      simulation.Schedule();
    } else if (simulation.pending()) {
      simulation.FinishOldest();
    }
    ASSERT_THAT(simulation.problems(), IsEmpty());
  }
  while (simulation.pending()) simulation.FinishOldest();
  const BlockManager& blocks = simulation.scheduler().blocks();
  EXPECT_EQ(blocks.num_free_blocks(), capacity.num_blocks);
  EXPECT_EQ(blocks.num_free_slots(), capacity.num_state_slots);
  EXPECT_EQ(simulation.scheduler().num_running() + simulation.scheduler().num_waiting(), 0);
  EXPECT_THAT(simulation.scheduler().queue().flows(), IsEmpty());
  EXPECT_EQ(simulation.scheduler().NextDeadline(), absl::InfiniteFuture());
  totals.finished += simulation.num_finished();
  totals.preemptions += simulation.scheduler().num_preemptions();
  totals.prefix_hits += simulation.scheduler().num_prefix_hits();
  totals.state_loads += simulation.num_loads();
}

TEST(SchedulerSimulationTest, EveryRequestEndsWithItsUndisturbedOutputAndNothingLeaks) {
  Totals totals;
  for (uint32_t seed = 0; seed < 3000; ++seed) {
    SCOPED_TRACE(seed);
    RunSeed(seed, totals);
    if (HasFailure()) return;
  }
  // The seeds must reach what they are for.
  EXPECT_GT(totals.finished, 5000);
  EXPECT_GT(totals.preemptions, 1000);
  EXPECT_GT(totals.prefix_hits, 100 * kGridTokens);
  EXPECT_GT(totals.state_loads, 100);
}

// Damages plans in one way and reports what the checker says.
std::vector<std::string> ProblemsWith(std::function<void(StepPlan&)> mutate) {
  const ClusterCapacity capacity{
      .num_blocks = 16, .num_state_slots = 4, .max_step_tokens = 128, .pipeline_stages = 1};
  Simulation simulation(capacity);
  simulation.mutate = std::move(mutate);
  for (int n : {150, 40, 200}) {
    GenerationRequest request;
    for (int i = 0; i < n; ++i) request.prompt.push_back((i * 7 + n) % kFakeVocab);
    request.max_tokens = 70;
    simulation.Add(std::move(request));
  }
  for (int i = 0; i < 200 && simulation.busy(); ++i) {
    simulation.Schedule();
    simulation.FinishOldest();
  }
  return simulation.problems();
}

TEST(SchedulerControlTest, UndamagedPlansHaveNoProblem) {
  EXPECT_THAT(ProblemsWith([](StepPlan&) {}), IsEmpty());
}

TEST(SchedulerControlTest, ChecksFindAWrongSlot) {
  EXPECT_THAT(ProblemsWith([](StepPlan& plan) {
                if (plan.step == 12) plan.sequences[0].state_slot ^= 1;
              }),
              Not(IsEmpty()));
}

TEST(SchedulerControlTest, ChecksFindSwappedBlocks) {
  EXPECT_THAT(ProblemsWith([](StepPlan& plan) {
                auto& table = plan.sequences[0].block_table;
                if (plan.step == 12) std::swap(table[0], table[1]);
              }),
              Not(IsEmpty()));
}

TEST(SchedulerControlTest, ChecksFindAWrongRole) {
  EXPECT_THAT(ProblemsWith([](StepPlan& plan) {
                if (plan.step == 12) plan.sequences[0].num_prompt_tokens = 1;
              }),
              Not(IsEmpty()));
}

TEST(SchedulerControlTest, ChecksFindAPromptCutOffTheGrid) {
  EXPECT_THAT(ProblemsWith([](StepPlan& plan) {
                SequencePlan& first = plan.sequences[0];
                if (first.start > 0 && first.num_prompt_tokens > 0) {
                  first.tokens.insert(first.tokens.begin(), 1);
                  --first.start;
                  ++first.num_prompt_tokens;
                }
              }),
              Not(IsEmpty()));
}

TEST(SchedulerControlTest, ChecksFindAForgottenReplay) {
  // A sequence that goes on after a lost cluster as if its caches were still there.
  FakeCluster fresh({.num_blocks = 4, .num_state_slots = 1, .max_step_tokens = 64});
  SequencePlan plan{
      .sequence_id = 1, .tokens = {5}, .start = 70, .block_table = {0, 1}, .state_slot = 0};
  fresh.Run({.epoch = 2, .step = 9, .sequences = {plan}});
  EXPECT_THAT(fresh.problems(), Not(IsEmpty()));
}

GenerationRequest Prompt(int64_t num_prompt, int64_t max_tokens) {
  GenerationRequest request;
  request.prompt.assign(num_prompt, 1);
  request.max_tokens = max_tokens;
  return request;
}

TEST(SchedulerTest, DecodesComeFirstAndPromptsTakeTheRestOnTheGrid) {
  Simulation simulation({.num_blocks = 64, .max_step_tokens = 256});
  simulation.Add(Prompt(10, 5));
  simulation.Schedule();
  simulation.FinishOldest();
  simulation.Add(Prompt(1000, 5));
  simulation.Schedule();
  const StepPlan& plan = simulation.plans().front();
  ASSERT_EQ(plan.sequences.size(), 2);
  EXPECT_EQ(plan.sequences[0].tokens.size(), 1);
  EXPECT_EQ(plan.sequences[0].num_prompt_tokens, 0);
  EXPECT_TRUE(plan.sequences[0].draw_token);
  EXPECT_EQ(plan.sequences[1].tokens.size(), 192);  // 255 rows are left; cut down to the grid
  EXPECT_FALSE(plan.sequences[1].draw_token);
  EXPECT_EQ(plan.sequences[1].block_table.size(), 3);
}

TEST(SchedulerTest, AReplayTakesPromptAndGeneratedTokensWithTheirRoles) {
  Simulation simulation({.num_blocks = 64, .max_step_tokens = 256});
  simulation.Add(Prompt(100, 50));
  for (int i = 0; i < 20; ++i) {
    simulation.Schedule();
    simulation.FinishOldest();
  }
  simulation.NewEpoch();
  simulation.Schedule();
  const SequencePlan& plan = simulation.plans().front().sequences[0];
  EXPECT_EQ(plan.start, 0);
  EXPECT_EQ(plan.tokens.size(), 120);
  EXPECT_EQ(plan.num_prompt_tokens, 100);
  EXPECT_TRUE(plan.draw_token);
}

TEST(SchedulerTest, TheYoungestIsPreemptedForAnOlderOne) {
  Simulation simulation({.num_blocks = 2, .max_step_tokens = 256});
  const uint64_t old = simulation.Add(Prompt(60, 60));
  simulation.Add(Prompt(10, 50));
  while (simulation.num_finished() == 0) {
    ASSERT_TRUE(simulation.Schedule());
    simulation.FinishOldest();
  }
  EXPECT_FALSE(simulation.sequences().contains(old));
  EXPECT_EQ(simulation.scheduler().num_preemptions(), 1);
  while (simulation.busy()) {
    ASSERT_TRUE(simulation.Schedule());
    simulation.FinishOldest();
  }
  EXPECT_THAT(simulation.problems(), IsEmpty());
}

TEST(SchedulerTest, StagesShareTheDecodes) {
  Simulation simulation({.num_blocks = 64, .max_step_tokens = 256, .pipeline_stages = 3}, 32);
  for (int i = 0; i < 25; ++i) simulation.Add(Prompt(10, 40));
  simulation.Schedule();  // all prompts fit in one step
  simulation.FinishOldest();
  std::vector<size_t> sizes;
  while (simulation.Schedule()) sizes.push_back(simulation.plans().back().sequences.size());
  EXPECT_EQ(sizes, (std::vector<size_t>{9, 9, 7}));
}

TEST(SchedulerTest, AFewDecodesStayTogether) {
  Simulation simulation({.num_blocks = 64, .max_step_tokens = 256, .pipeline_stages = 3}, 32);
  for (int i = 0; i < 10; ++i) simulation.Add(Prompt(10, 40));
  simulation.Schedule();
  simulation.FinishOldest();
  std::vector<size_t> sizes;
  while (simulation.Schedule()) sizes.push_back(simulation.plans().back().sequences.size());
  EXPECT_EQ(sizes, (std::vector<size_t>{8, 2}));
}

TEST(SchedulerTest, NobodyOvertakesAWaitingPrompt) {
  Simulation simulation({.num_blocks = 8, .max_step_tokens = 64}, 8);
  simulation.Add(Prompt(200, 1));
  const uint64_t short_one = simulation.Add(Prompt(1, 1));
  for (int i = 0; i < 3; ++i) {
    simulation.Schedule();
    ASSERT_EQ(simulation.plans().front().sequences.size(), 1);
    ASSERT_NE(simulation.plans().front().sequences[0].sequence_id, short_one);
    simulation.FinishOldest();
  }
  simulation.Schedule();  // the long prompt's last 8 tokens leave room
  EXPECT_EQ(simulation.plans().front().sequences.size(), 2);
}

TEST(SchedulerTest, DecodesBeyondTheBudgetTakeTurns) {
  Simulation simulation({.num_blocks = 200, .max_step_tokens = 64}, 200);
  std::map<uint64_t, int> turns;
  for (int i = 0; i < 96; ++i) simulation.Add(Prompt(1, 1000));
  for (int i = 0; i < 2; ++i) {
    simulation.Schedule();
    simulation.FinishOldest();
  }
  for (int i = 0; i < 30; ++i) {
    simulation.Schedule();
    for (const SequencePlan& plan : simulation.plans().front().sequences) ++turns[plan.sequence_id];
    simulation.FinishOldest();
  }
  // The prompts that found no room must wait until decodes end; those that decode get equal turns.
  for (const auto& [id, count] : turns)
    EXPECT_NEAR(count, 30 * 64 / static_cast<int>(turns.size()), 1);
}

TEST(SchedulerTest, DeadlinesExpireInOrder) {
  Simulation simulation({.num_blocks = 8, .max_step_tokens = 64});
  const absl::Time start = absl::FromUnixSeconds(1000);
  for (int seconds : {5, 2, 9}) {
    GenerationRequest request = Prompt(1, 1);
    request.deadline = start + absl::Seconds(seconds);
    simulation.Add(std::move(request));
  }
  EXPECT_EQ(simulation.scheduler().NextDeadline(), start + absl::Seconds(2));
  EXPECT_THAT(simulation.scheduler().Expired(start + absl::Seconds(1)), IsEmpty());
  const std::vector<Sequence*> expired = simulation.scheduler().Expired(start + absl::Seconds(5));
  ASSERT_EQ(expired.size(), 2);
  EXPECT_EQ(expired[0]->id(), 2);
  EXPECT_EQ(expired[1]->id(), 1);
}

}  // namespace
}  // namespace plumbline
