// Steps are timed once each, and filed under the right phase.
#include "coordinator/engine/step_timer.h"

#include <gtest/gtest.h>

#include <numeric>

namespace plumbline {
namespace {

constexpr absl::Time kStart = absl::FromUnixSeconds(1'700'000'000);

SequencePlan Prompt(size_t num_tokens) {
  return {.tokens = std::vector<int32_t>(num_tokens, 1), .num_prompt_tokens = static_cast<int32_t>(num_tokens)};
}
SequencePlan Decode() { return {.tokens = {1}, .num_prompt_tokens = 0}; }

uint64_t CountOf(const StepTimer& timer, StepPhase phase) {
  const auto& counts = timer.times()[static_cast<size_t>(phase)].counts;
  return std::accumulate(counts.begin(), counts.end(), uint64_t{0});
}

TEST(StepTimer, KnowsThePhases) {
  StepTimer timer;
  timer.Submitted({.sequences = {Prompt(64), Prompt(1)}}, kStart);
  timer.Finished(kStart + absl::Milliseconds(1));
  timer.Submitted({.sequences = {Decode(), Decode()}}, kStart);
  timer.Finished(kStart + absl::Milliseconds(2));
  timer.Submitted({.sequences = {Decode(), Prompt(64)}}, kStart);
  timer.Finished(kStart + absl::Milliseconds(3));
  SequencePlan replay{.tokens = {1, 2, 3}, .num_prompt_tokens = 0};
  timer.Submitted({.sequences = {replay}}, kStart);
  timer.Finished(kStart + absl::Milliseconds(4));
  EXPECT_EQ(CountOf(timer, StepPhase::kPrefill), 2u);
  EXPECT_EQ(CountOf(timer, StepPhase::kDecode), 1u);
  EXPECT_EQ(CountOf(timer, StepPhase::kMixed), 1u);
}

TEST(StepTimer, StepsInFlightAreCountedFromTheEndOfTheOneBefore) {
  StepTimer timer;
  for (int i = 0; i < 2; ++i) timer.Submitted({.sequences = {Decode()}}, kStart + absl::Seconds(i));
  timer.Finished(kStart + absl::Seconds(4));
  timer.Finished(kStart + absl::Seconds(7));
  EXPECT_DOUBLE_EQ(timer.times()[1].sum_seconds, 7);  // 4 and 3, not 4 and 6
  timer.Submitted({.sequences = {Decode()}}, kStart + absl::Seconds(20));
  timer.Finished(kStart + absl::Seconds(21));
  EXPECT_DOUBLE_EQ(timer.times()[1].sum_seconds, 8);  // idle time is not a step's
}

TEST(StepTimer, LostStepsAreForgotten) {
  StepTimer timer;
  timer.Submitted({.sequences = {Prompt(64)}}, kStart);
  timer.Lost();
  timer.Submitted({.sequences = {Decode()}}, kStart + absl::Seconds(1));
  timer.Finished(kStart + absl::Seconds(2));
  EXPECT_EQ(CountOf(timer, StepPhase::kPrefill), 0u);
  EXPECT_DOUBLE_EQ(timer.times()[1].sum_seconds, 1);
}

TEST(StepTimes, BoundsBelongToTheBucketBelow) {
  StepTimes times;
  times.Observe(absl::Milliseconds(1));
  times.Observe(absl::Milliseconds(1) + absl::Nanoseconds(1));
  times.Observe(absl::Seconds(21));
  EXPECT_EQ(times.counts[1], 1u);
  EXPECT_EQ(times.counts[2], 1u);
  EXPECT_EQ(times.counts.back(), 1u);
}

}  // namespace
}  // namespace plumbline
