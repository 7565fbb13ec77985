// Step plans and results survive the wire unchanged; damaged ones are refused with the reason. The
// expected wire bytes come from protobuf's own text format, not from the encoder.
#include "parallel/step_codec.h"

#include <google/protobuf/text_format.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/cluster.pb.h"

namespace plumbline {
namespace {

using ::testing::HasSubstr;

constexpr char kPlanText[] = R"(
  epoch: 3 step: 18446744073709551615
  sequences {
    sequence_id: 12345678901234 tokens: [5, 0, 151000] start: 63 num_prompt_tokens: 1
    block_table: [9, 2] state_slot: 4 draw_token: true load_slot: 6 save_slot: 7
    draw { temperature: 0.7 top_k: 20 top_p: 0.95 min_p: 0.05 seed: 9223372036854775809
           repetition_penalty: 1.1 presence_penalty: -0.5 frequency_penalty: 0.25
           entry_token: [7, 8] entry_count: [0, 3] entry_seen: [false, true] entry_bias: [-100, 0] }
    num_top_logprobs: 5 targets: [0, 151000, -1] return_logits: true
  }
  sequences { sequence_id: 2 tokens: 1 block_table: 0 state_slot: -1 load_slot: -1 save_slot: -1 num_top_logprobs: -1 }
)";

std::string PlanBytes(const std::function<void(v1::StepPlanMessage&)>& change = {}) {
  v1::StepPlanMessage message;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(kPlanText, &message));
  if (change) change(message);
  return message.SerializeAsString();
}

TEST(StepCodecTest, ReadsEveryFieldOfAPlan) {
  const absl::StatusOr<StepPlan> plan = DecodeStepPlan(PlanBytes());
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->epoch, 3);
  EXPECT_EQ(plan->step, std::numeric_limits<uint64_t>::max());
  ASSERT_EQ(plan->sequences.size(), 2);
  const SequencePlan& first = plan->sequences[0];
  EXPECT_EQ(first.sequence_id, 12345678901234);
  EXPECT_EQ(first.tokens, (std::vector<int32_t>{5, 0, 151000}));
  EXPECT_EQ(first.start, 63);
  EXPECT_EQ(first.num_prompt_tokens, 1);
  EXPECT_EQ(first.block_table, (std::vector<int32_t>{9, 2}));
  EXPECT_EQ(first.state_slot, 4);
  EXPECT_EQ(first.load_slot, 6);
  EXPECT_EQ(first.save_slot, 7);
  EXPECT_TRUE(first.draw_token);
  EXPECT_EQ(first.num_top_logprobs, 5);
  EXPECT_EQ(first.targets, (std::vector<int32_t>{0, 151000, -1}));
  EXPECT_TRUE(first.return_logits);
  EXPECT_EQ(first.draw.temperature, 0.7f);
  EXPECT_EQ(first.draw.top_k, 20);
  EXPECT_EQ(first.draw.top_p, 0.95f);
  EXPECT_EQ(first.draw.min_p, 0.05f);
  EXPECT_EQ(first.draw.seed, 9223372036854775809u);
  EXPECT_EQ(first.draw.repetition_penalty, 1.1f);
  EXPECT_EQ(first.draw.presence_penalty, -0.5f);
  EXPECT_EQ(first.draw.frequency_penalty, 0.25f);
  ASSERT_EQ(first.draw.entries.size(), 2);
  EXPECT_EQ(first.draw.entries[0].bias, -100);
  EXPECT_FALSE(first.draw.entries[0].seen);
  EXPECT_EQ(first.draw.entries[1].token, 8);
  EXPECT_EQ(first.draw.entries[1].count, 3);
  EXPECT_TRUE(first.draw.entries[1].seen);
  const SequencePlan& second = plan->sequences[1];
  EXPECT_EQ(second.state_slot, -1);
  EXPECT_EQ(second.load_slot, -1);
  EXPECT_EQ(second.save_slot, -1);
  EXPECT_EQ(second.num_top_logprobs, -1);
  EXPECT_FALSE(second.draw_token);
}

TEST(StepCodecTest, WritesThePlanItRead) {
  const std::string bytes = PlanBytes();
  EXPECT_EQ(EncodeStepPlan(*DecodeStepPlan(bytes)), bytes);
}

TEST(StepCodecTest, RefusesDamagedPlansWithTheReason) {
  using Change = std::function<void(v1::SequencePlanMessage&)>;
  const std::vector<std::pair<Change, const char*>> cases = {
      {[](auto& s) { s.clear_tokens(); }, "no tokens"},
      {[](auto& s) { s.set_tokens(1, -2); }, "tokens holds -2"},
      {[](auto& s) { s.set_start(-1); }, "start -1"},
      {[](auto& s) { s.set_start(std::numeric_limits<int32_t>::max()); }, "start 2147483647"},
      {[](auto& s) { s.set_num_prompt_tokens(4); }, "num_prompt_tokens 4 of 3"},
      {[](auto& s) { s.add_block_table(1); }, "block_table of 3 blocks; 66 positions need 2"},
      {[](auto& s) { s.set_block_table(0, -1); }, "block_table holds -1"},
      {[](auto& s) { s.set_state_slot(-2); }, "state_slot -2"},
      {[](auto& s) { s.set_load_slot(-2); }, "load_slot -2"},
      {[](auto& s) { s.set_save_slot(-2); }, "save_slot -2"},
      {[](auto& s) { s.add_targets(1); }, "4 targets for 3 tokens"},
      {[](auto& s) { s.set_targets(0, -2); }, "targets holds -2"},
      {[](auto& s) { s.set_num_top_logprobs(1 << 30); }, "num_top_logprobs"},
      {[](auto& s) { s.clear_draw(); }, "draw_token without draw"},
      {[](auto& s) { s.mutable_draw()->set_temperature(-1); }, "negative"},
      {[](auto& s) { s.mutable_draw()->set_top_p(NAN); }, "not finite"},
      {[](auto& s) { s.mutable_draw()->add_entry_token(1); }, "unequal lengths 3, 2, 2, 2"},
      {[](auto& s) { s.mutable_draw()->set_entry_token(0, -1); }, "entry_token holds -1"},
  };
  for (const auto& [change, reason] : cases) {
    const auto plan = DecodeStepPlan(
        PlanBytes([&](v1::StepPlanMessage& message) { change(*message.mutable_sequences(0)); }));
    EXPECT_EQ(plan.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(plan.status().message()), HasSubstr(reason));
    EXPECT_THAT(std::string(plan.status().message()), HasSubstr("12345678901234"));
  }
  EXPECT_THAT(std::string(DecodeStepPlan("\xff\xff").status().message()), HasSubstr("damaged"));
}

TEST(StepCodecTest, ARandomlyDamagedPlanIsReadOrRefusedButNeverOutOfBounds) {
  std::mt19937 random(1);
  const std::string good = PlanBytes();
  int num_refused = 0;
  for (int round = 0; round < 20000; ++round) {
    std::string bytes = good.substr(0, random() % 8 == 0 ? random() % good.size() : good.size());
    for (size_t flips = 1 + random() % 3; flips > 0 && !bytes.empty(); --flips) {
      bytes[random() % bytes.size()] = static_cast<char>(random());
    }
    const auto plan = DecodeStepPlan(bytes);
    num_refused += !plan.ok();
    if (!plan.ok()) continue;
    for (const SequencePlan& sequence : plan->sequences) {
      ASSERT_EQ(static_cast<int64_t>(sequence.block_table.size()),
                (sequence.start + static_cast<int64_t>(sequence.tokens.size()) + kGridTokens - 1) /
                    kGridTokens);
    }
  }
  EXPECT_GT(num_refused, 1000);
}

TEST(StepCodecTest, AResultKeepsEveryBit) {
  StepResult result{.epoch = 7, .step = 8};
  const float nan = std::numeric_limits<float>::quiet_NaN();
  result.sequences.push_back({.sequence_id = 1,
                              .token = 42,
                              .drawn = {{42, -0.1f, 1, {42, 7}, {-0.1f, -3.4e38f}}},
                              .scored = {{9, -0.0f, 3, {}, {}}, {8, nan, 0, {1}, {-1e-45f}}},
                              .logits = std::string("\0\1\2\xff", 4)});
  result.sequences.push_back({.sequence_id = 2});
  const absl::StatusOr<StepResult> read = DecodeStepResult(EncodeStepResult(result));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->epoch, 7);
  EXPECT_EQ(read->step, 8);
  ASSERT_EQ(read->sequences.size(), 2);
  const SequenceResult& first = read->sequences[0];
  EXPECT_EQ(first.sequence_id, 1);
  EXPECT_EQ(first.token, 42);
  EXPECT_EQ(first.logits, result.sequences[0].logits);
  const auto expect_same = [](const TokenLogprob& got, const TokenLogprob& want) {
    EXPECT_EQ(got.token, want.token);
    EXPECT_EQ(std::memcmp(&got.logprob, &want.logprob, sizeof(float)), 0);
    EXPECT_EQ(got.rank, want.rank);
    EXPECT_EQ(got.top_tokens, want.top_tokens);
    EXPECT_EQ(got.top_logprobs, want.top_logprobs);
  };
  ASSERT_EQ(first.drawn.size(), 1);
  ASSERT_EQ(first.scored.size(), 2);
  expect_same(first.drawn[0], result.sequences[0].drawn[0]);
  expect_same(first.scored[0], result.sequences[0].scored[0]);
  expect_same(first.scored[1], result.sequences[0].scored[1]);
  EXPECT_EQ(read->sequences[1].token, -1);
}

TEST(StepCodecTest, RefusesDamagedResults) {
  v1::StepResultMessage message;
  v1::SequenceResultMessage& sequence = *message.add_sequences();
  sequence.set_sequence_id(5);
  sequence.add_drawn()->add_top_tokens(1);
  EXPECT_THAT(std::string(DecodeStepResult(message.SerializeAsString()).status().message()),
              HasSubstr("1 top tokens with 0"));
  sequence.mutable_drawn(0)->clear_top_tokens();
  sequence.add_drawn();
  EXPECT_THAT(std::string(DecodeStepResult(message.SerializeAsString()).status().message()),
              HasSubstr("at most one"));
  sequence.clear_drawn();
  sequence.set_token(-2);
  EXPECT_THAT(std::string(DecodeStepResult(message.SerializeAsString()).status().message()),
              HasSubstr("drawn token -2"));
}

}  // namespace
}  // namespace plumbline
