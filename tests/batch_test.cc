// A rank refuses a plan that would copy states from or to places that are not there, or to where no state belongs.
#include "worker/model/batch.h"

#include <functional>

#include "absl/strings/string_view.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace plumbline {
namespace {

using ::testing::HasSubstr;

constexpr BatchLimits kLimits{.max_step_tokens = 256,
                              .max_sequences = 4,
                              .num_blocks = 8,
                              .num_state_slots = 3,
                              .max_positions = 512,
                              .vocab = 10};

// The second block of a prompt, from a loaded state, saved behind it.
absl::Status Check(const std::function<void(SequencePlan&)>& change, const BatchLimits& limits = kLimits) {
  SequencePlan sequence = {.sequence_id = 7,
                           .tokens = std::vector<int32_t>(64, 1),
                           .start = 64,
                           .num_prompt_tokens = 64,
                           .block_table = {0, 1},
                           .state_slot = 0,
                           .load_slot = 1,
                           .save_slot = 2};
  if (change) change(sequence);
  return CheckPlan({.epoch = 1, .step = 3, .sequences = {sequence}}, limits);
}

TEST(BatchTest, StateCopiesAreCheckedByPlaceAndSlot) {
  EXPECT_TRUE(Check({}).ok()) << Check({});
  const std::vector<std::pair<std::function<void(SequencePlan&)>, const char*>> cases = {
      {[](auto& s) { s.load_slot = 3; }, "slot 3 of 3"},
      {[](auto& s) { s.save_slot = 3; }, "slot 3 of 3"},
      {[](auto& s) { s.load_slot = -2; }, "slot -2 of 3"},
      {[](auto& s) { s.load_slot = 0; }, "slot 0 is copied to itself"},
      {[](auto& s) { s.save_slot = 0; }, "slot 0 is copied to itself"},
      {[](auto& s) { s.start = 0; }, "a state is loaded at position 0"},
      {[](auto& s) { s.start = 65, s.num_prompt_tokens = 0, s.save_slot = -1, s.block_table = {0, 1, 2}; },
       "a state is loaded at position 65"},
      {[](auto& s) { s.tokens.pop_back(), s.num_prompt_tokens = 63; }, "a state is saved at position 127"},
      {[](auto& s) { s.num_prompt_tokens = 63; }, "a state is saved at position 128; it belongs on the grid, behind prompt"},
  };
  for (const auto& [change, reason] : cases) {
    const absl::Status status = Check(change);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(reason));
    EXPECT_THAT(std::string(status.message()), HasSubstr("step 3, sequence 7"));
  }
}

TEST(BatchTest, AModelWithoutStatesCopiesNone) {
  BatchLimits limits = kLimits;
  limits.num_state_slots = 0;
  EXPECT_FALSE(Check([](SequencePlan& s) { s.state_slot = -1; }, limits).ok());
  EXPECT_TRUE(Check([](SequencePlan& s) { s.state_slot = s.load_slot = s.save_slot = -1; }, limits).ok());
}

}  // namespace
}  // namespace plumbline
