#include "coordinator/cluster/step_clock.h"

#include "gtest/gtest.h"

namespace plumbline {
namespace {

constexpr StepClock::Options kOptions = {.least = absl::Seconds(4), .most = absl::Seconds(120), .margin = 10};

TEST(StepClockTest, KnowsNothingAtFirst) {
  StepClock clock(kOptions);
  EXPECT_EQ(clock.DeadlineOf(1), absl::Seconds(120));
  clock.Observe(1, absl::Milliseconds(50));
  EXPECT_EQ(clock.DeadlineOf(1), absl::Seconds(4));
  EXPECT_EQ(clock.DeadlineOf(512), absl::Seconds(120)) << "a decode says nothing of a prompt";
}

TEST(StepClockTest, AFastMachineNoticesSoonASlowOneHasTime) {
  StepClock fast(kOptions), slow(kOptions);
  fast.Observe(512, absl::Milliseconds(300));
  slow.Observe(512, absl::Seconds(7));
  EXPECT_EQ(fast.DeadlineOf(512), absl::Seconds(4));
  EXPECT_EQ(slow.DeadlineOf(512), absl::Seconds(70));
  EXPECT_EQ(slow.DeadlineOf(128), absl::Seconds(17.5));
  slow.Observe(512, absl::Seconds(40));
  EXPECT_EQ(slow.DeadlineOf(512), absl::Seconds(120));
}

// A prompt of 100,000 tokens whose attention makes each step slower than the one before: 6 s at first, 60 s at the end.
TEST(StepClockTest, NeverFlagsALongPrefill) {
  StepClock clock(kOptions);
  for (int64_t at = 0; at < 100'000; at += 512) {
    const absl::Duration takes = absl::Seconds(6 + 54 * static_cast<double>(at) / 100'000);
    ASSERT_LT(takes, clock.DeadlineOf(512)) << at;
    clock.Observe(512, takes);
  }
}

TEST(StepClockTest, ForgetsWhatIsLongPast) {
  StepClock clock(kOptions);
  clock.Observe(8, absl::Seconds(5));
  EXPECT_EQ(clock.DeadlineOf(8), absl::Seconds(50));
  for (int i = 0; i < 31; ++i) clock.Observe(8, absl::Milliseconds(600));
  EXPECT_EQ(clock.DeadlineOf(8), absl::Seconds(50));
  clock.Observe(8, absl::Milliseconds(600));
  EXPECT_EQ(clock.DeadlineOf(8), absl::Seconds(6));
}

}  // namespace
}  // namespace plumbline
