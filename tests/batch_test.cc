// A rank refuses a plan that would copy states from or to places that are not there, or to where no state belongs; the rows
// whose logits are wanted by themselves.
#include "worker/model/batch.h"

#include <functional>

#include "absl/strings/string_view.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"

namespace plumbline {
namespace {

using ::testing::ElementsAre;
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

std::vector<int32_t> Ints(const ConstTensor& tensor) {
  return {tensor.as<int32_t>(), tensor.as<int32_t>() + tensor.num_elements()};
}

TEST(BatchTest, WantedRowsAreRunsOfTheirSequences) {
  const Backend backend = MakeReferenceBackend();
  BatchBuilder builder(*backend.device, kLimits, /*rotary_dim=*/8);
  // Positions 64-69 of which 64, 66, 67 and 69 are wanted; none; the last of 0-2.
  const StepPlan plan = {
      .sequences = {{.tokens = {1, 2, 3, 4, 5, 6}, .start = 64, .num_prompt_tokens = 6, .block_table = {3, 4},
                     .state_slot = 0, .draw_token = true, .targets = {7, -1, 7, 7, -1, -1}},
                    {.tokens = {1}, .start = 5, .block_table = {5}, .state_slot = 1},
                    {.tokens = {1, 2, 3}, .num_prompt_tokens = 3, .block_table = {6}, .state_slot = 2, .draw_token = true}}};
  const Batch batch = builder.Build(plan);
  EXPECT_EQ(batch.all.count, 10);
  EXPECT_THAT(Ints(batch.all.sequences.row_begin), ElementsAre(0, 6, 7, 10));
  EXPECT_THAT(Ints(batch.all.sequences.num_prompt_rows), ElementsAre(6, 0, 3));
  EXPECT_EQ(batch.wanted.count, 5);
  EXPECT_THAT(Ints(batch.wanted_rows), ElementsAre(0, 2, 3, 5, 9));
  EXPECT_THAT(Ints(batch.wanted.positions), ElementsAre(64, 66, 67, 69, 2));
  EXPECT_THAT(Ints(batch.wanted.sequences.row_begin), ElementsAre(0, 1, 3, 4, 5));
  EXPECT_THAT(Ints(batch.wanted.sequences.start), ElementsAre(64, 66, 69, 2));
  EXPECT_THAT(Ints(batch.wanted.sequences.num_prompt_rows), ElementsAre(0, 0, 0, 0));
  EXPECT_THAT(Ints(batch.wanted.sequences.state_slot), ElementsAre(0, 0, 0, 2));
  EXPECT_THAT(Ints(batch.wanted.sequences.block_table), ElementsAre(3, 4, 3, 4, 3, 4, 6, 0));
}

TEST(BatchTest, AllRowsWantedAreTheBatchItself) {
  const Backend backend = MakeReferenceBackend();
  BatchBuilder builder(*backend.device, kLimits, /*rotary_dim=*/8);
  const SequencePlan decode = {.tokens = {1}, .start = 5, .block_table = {5}, .state_slot = 1, .draw_token = true};
  const Batch batch = builder.Build({.sequences = {decode, decode}});
  EXPECT_EQ(batch.wanted.count, 2);
  EXPECT_EQ(batch.wanted.cos.raw(), batch.all.cos.raw());
  EXPECT_EQ(batch.wanted.sequences.block_table.raw(), batch.all.sequences.block_table.raw());
}

// As many runs as there can be, in the memory laid out for them.
TEST(BatchTest, EveryOtherRowIsARun) {
  const Backend backend = MakeReferenceBackend();
  BatchLimits limits = kLimits;
  limits.max_step_tokens = 64;
  limits.max_sequences = 1;
  BatchBuilder builder(*backend.device, limits, /*rotary_dim=*/8);
  SequencePlan sequence = {
      .tokens = std::vector<int32_t>(63, 1), .num_prompt_tokens = 63, .block_table = {2}, .state_slot = 0};
  for (int i = 0; i < 63; ++i) sequence.targets.push_back(i % 2 == 0 ? 1 : -1);
  const Batch batch = builder.Build({.sequences = {sequence}});
  EXPECT_EQ(batch.wanted.count, 32);
  EXPECT_EQ(batch.wanted.sequences.num_sequences(), 32);
  EXPECT_EQ(Ints(batch.wanted.sequences.start)[31], 62);
}

}  // namespace
}  // namespace plumbline
