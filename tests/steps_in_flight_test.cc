#include "coordinator/cluster/steps_in_flight.h"

#include <gtest/gtest.h>

namespace plumbline {
namespace {

constexpr StepClock::Options kOptions = {.least = absl::Seconds(4), .most = absl::Seconds(120), .margin = 10};
constexpr absl::Time kStart = absl::UnixEpoch();

// Short prompts and decodes, 10 ms each; returns the time after them.
absl::Time RunShortSteps(StepsInFlight& steps) {
  absl::Time now = kStart;
  steps.BeginEpoch();
  for (uint64_t step = 0; step < 40; ++step) {
    steps.Submit(step, step % 2 == 0 ? 1 : 100, now);
    now += absl::Milliseconds(10);
    EXPECT_TRUE(steps.IsDue(step));
    steps.Finish(now);
  }
  return now;
}

TEST(StepsInFlightTest, AStepThatStandsStillIsLate) {
  StepsInFlight steps(kOptions);
  const absl::Time now = RunShortSteps(steps);
  EXPECT_TRUE(steps.CheckMoves(now + absl::Hours(1)).ok()) << "nothing is in flight";
  EXPECT_EQ(steps.QuietFor(now + absl::Hours(1)), absl::ZeroDuration());
  steps.Submit(40, 1, now);
  EXPECT_EQ(steps.QuietFor(now + absl::Seconds(3)), absl::Seconds(3));
  EXPECT_TRUE(steps.CheckMoves(now + absl::Seconds(3.9)).ok());
  EXPECT_EQ(steps.CheckMoves(now + absl::Seconds(4.1)), absl::DeadlineExceededError("step 40 has stood still for 4s"));
}

// A step thousands of times longer than those before it, of a prompt and of a decode: as long as ranks enter calls.
TEST(StepsInFlightTest, ALongStepThatMovesIsNeverLateAfterShortOnes) {
  for (const int64_t num_rows : {1, 512}) {
    StepsInFlight steps(kOptions);
    absl::Time now = RunShortSteps(steps);
    steps.Submit(40, num_rows, now);
    for (int second = 0; second < 600; ++second) {
      now += absl::Seconds(1);
      ASSERT_TRUE(steps.CheckMoves(now).ok()) << num_rows << " rows after " << second << " s";
      if (second % 3 != 0) continue;
      steps.NoteProgress(now);
      EXPECT_EQ(steps.QuietFor(now), absl::ZeroDuration());
    }
    EXPECT_FALSE(steps.CheckMoves(now + absl::Seconds(119)).ok());
    steps.Finish(now);
    EXPECT_TRUE(steps.CheckMoves(now).ok());
  }
}

TEST(StepsInFlightTest, TheNextStepsTimeBeginsWhenTheOneBeforeIsDone) {
  StepsInFlight steps(kOptions);
  absl::Time now = RunShortSteps(steps);
  steps.Submit(40, 1, now);
  steps.Submit(41, 1, now);
  now += absl::Seconds(3);
  steps.Finish(now);
  EXPECT_TRUE(steps.IsDue(41));
  EXPECT_TRUE(steps.CheckMoves(now + absl::Seconds(3)).ok());
}

TEST(StepsInFlightTest, ACoordinatorThatStoodStillExcusesItsWorkers) {
  StepsInFlight steps(kOptions);
  const absl::Time now = RunShortSteps(steps);
  steps.Submit(40, 1, now);
  steps.Excuse(absl::Seconds(30));
  EXPECT_TRUE(steps.CheckMoves(now + absl::Seconds(33)).ok());
  EXPECT_FALSE(steps.CheckMoves(now + absl::Seconds(35)).ok());
}

}  // namespace
}  // namespace plumbline
