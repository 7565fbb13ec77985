#include "parallel/step_codec.h"

#include <cmath>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "proto/cluster.pb.h"
#include "proto/status.h"

namespace plumbline {
namespace {

// Far above what a cluster is laid out for; a number beyond them is damage, not load.
constexpr int64_t kMaxSequences = int64_t{1} << 16;
constexpr int64_t kMaxStepTokens = int64_t{1} << 20;
constexpr int64_t kMaxPosition = int64_t{1} << 30;
constexpr int32_t kMaxTopLogprobs = 1 << 20;

template <typename Field>
std::vector<typename Field::value_type> ToVector(const Field& field) {
  return {field.begin(), field.end()};
}

// Names the sequence that is wrong and how.
template <typename... Parts>
absl::Status BadSequence(uint64_t sequence_id, const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat("step of sequence ", sequence_id, ": ", parts...));
}

template <typename Field>
absl::Status CheckAtLeast(uint64_t sequence_id, const char* name, const Field& values,
                          int32_t least) {
  for (const int32_t value : values) {
    if (value < least) {
      return BadSequence(sequence_id, name, " holds ", value, "; at least ", least, " is right");
    }
  }
  return absl::OkStatus();
}

void EncodeDraw(const DrawPlan& draw, v1::DrawMessage& message) {
  message.set_temperature(draw.temperature);
  message.set_top_k(draw.top_k);
  message.set_top_p(draw.top_p);
  message.set_min_p(draw.min_p);
  message.set_seed(draw.seed);
  message.set_repetition_penalty(draw.repetition_penalty);
  message.set_presence_penalty(draw.presence_penalty);
  message.set_frequency_penalty(draw.frequency_penalty);
  for (const DrawPlan::Entry& entry : draw.entries) {
    message.add_entry_token(entry.token);
    message.add_entry_count(entry.count);
    message.add_entry_seen(entry.seen);
    message.add_entry_bias(entry.bias);
  }
}

absl::StatusOr<DrawPlan> DecodeDraw(uint64_t sequence_id, const v1::DrawMessage& message) {
  DrawPlan draw{.temperature = message.temperature(),
                .top_k = message.top_k(),
                .top_p = message.top_p(),
                .min_p = message.min_p(),
                .seed = message.seed(),
                .repetition_penalty = message.repetition_penalty(),
                .presence_penalty = message.presence_penalty(),
                .frequency_penalty = message.frequency_penalty()};
  for (const float value : {draw.temperature, draw.top_p, draw.min_p, draw.repetition_penalty,
                            draw.presence_penalty, draw.frequency_penalty}) {
    if (!std::isfinite(value)) return BadSequence(sequence_id, "a sampling number is not finite");
  }
  if (draw.temperature < 0 || draw.top_k < 0) {
    return BadSequence(sequence_id, "temperature ", draw.temperature, " or top_k ", draw.top_k,
                       " is negative");
  }
  const int count = message.entry_token_size();
  if (message.entry_count_size() != count || message.entry_seen_size() != count ||
      message.entry_bias_size() != count) {
    return BadSequence(sequence_id, "penalty entries of unequal lengths ", count, ", ",
                       message.entry_count_size(), ", ", message.entry_seen_size(), ", ",
                       message.entry_bias_size());
  }
  PL_RETURN_IF_ERROR(CheckAtLeast(sequence_id, "entry_token", message.entry_token(), 0));
  PL_RETURN_IF_ERROR(CheckAtLeast(sequence_id, "entry_count", message.entry_count(), 0));
  draw.entries.reserve(count);
  for (int i = 0; i < count; ++i) {
    draw.entries.push_back({.token = message.entry_token(i),
                            .count = message.entry_count(i),
                            .seen = message.entry_seen(i),
                            .bias = message.entry_bias(i)});
  }
  return draw;
}

void EncodeSequence(const SequencePlan& plan, v1::SequencePlanMessage& message) {
  message.set_sequence_id(plan.sequence_id);
  message.mutable_tokens()->Add(plan.tokens.begin(), plan.tokens.end());
  message.set_start(plan.start);
  message.set_num_prompt_tokens(plan.num_prompt_tokens);
  message.mutable_block_table()->Add(plan.block_table.begin(), plan.block_table.end());
  message.set_state_slot(plan.state_slot);
  message.set_load_slot(plan.load_slot);
  message.set_save_slot(plan.save_slot);
  message.set_draw_token(plan.draw_token);
  if (plan.draw_token) EncodeDraw(plan.draw, *message.mutable_draw());
  message.set_num_top_logprobs(plan.num_top_logprobs);
  message.mutable_targets()->Add(plan.targets.begin(), plan.targets.end());
  message.set_return_logits(plan.return_logits);
}

absl::Status CheckSequence(const v1::SequencePlanMessage& message) {
  const uint64_t id = message.sequence_id();
  const int64_t count = message.tokens_size();
  if (count == 0) return BadSequence(id, "no tokens");
  PL_RETURN_IF_ERROR(CheckAtLeast(id, "tokens", message.tokens(), 0));
  PL_RETURN_IF_ERROR(CheckAtLeast(id, "block_table", message.block_table(), 0));
  PL_RETURN_IF_ERROR(CheckAtLeast(id, "targets", message.targets(), -1));
  const int64_t end = message.start() + count;
  if (message.start() < 0 || end > kMaxPosition) {
    return BadSequence(id, "start ", message.start(), " with ", count,
                       " tokens; positions are in [0, ", kMaxPosition, ")");
  }
  if (message.num_prompt_tokens() < 0 || message.num_prompt_tokens() > count) {
    return BadSequence(id, "num_prompt_tokens ", message.num_prompt_tokens(), " of ", count);
  }
  const int64_t num_blocks = (end + kGridTokens - 1) / kGridTokens;
  if (message.block_table_size() != num_blocks) {
    return BadSequence(id, "block_table of ", message.block_table_size(), " blocks; ", end,
                       " positions need ", num_blocks);
  }
  if (message.state_slot() < -1) return BadSequence(id, "state_slot ", message.state_slot());
  if (message.load_slot() < -1) return BadSequence(id, "load_slot ", message.load_slot());
  if (message.save_slot() < -1) return BadSequence(id, "save_slot ", message.save_slot());
  if (message.targets_size() != 0 && message.targets_size() != count) {
    return BadSequence(id, message.targets_size(), " targets for ", count, " tokens");
  }
  if (message.num_top_logprobs() < -1 || message.num_top_logprobs() > kMaxTopLogprobs) {
    return BadSequence(id, "num_top_logprobs ", message.num_top_logprobs());
  }
  if (message.draw_token() && !message.has_draw()) {
    return BadSequence(id, "draw_token without draw");
  }
  return absl::OkStatus();
}

absl::StatusOr<SequencePlan> DecodeSequence(const v1::SequencePlanMessage& message) {
  PL_RETURN_IF_ERROR(CheckSequence(message));
  SequencePlan plan{.sequence_id = message.sequence_id(),
                    .tokens = ToVector(message.tokens()),
                    .start = message.start(),
                    .num_prompt_tokens = message.num_prompt_tokens(),
                    .block_table = ToVector(message.block_table()),
                    .state_slot = message.state_slot(),
                    .load_slot = message.load_slot(),
                    .save_slot = message.save_slot(),
                    .draw_token = message.draw_token(),
                    .num_top_logprobs = message.num_top_logprobs(),
                    .targets = ToVector(message.targets()),
                    .return_logits = message.return_logits()};
  if (plan.draw_token) {
    PL_ASSIGN_OR_RETURN(plan.draw, DecodeDraw(plan.sequence_id, message.draw()));
  }
  return plan;
}

void EncodeLogprob(const TokenLogprob& logprob, v1::TokenLogprobMessage& message) {
  message.set_token(logprob.token);
  message.set_logprob(logprob.logprob);
  message.set_rank(logprob.rank);
  message.mutable_top_tokens()->Add(logprob.top_tokens.begin(), logprob.top_tokens.end());
  message.mutable_top_logprobs()->Add(logprob.top_logprobs.begin(), logprob.top_logprobs.end());
}

absl::StatusOr<std::vector<TokenLogprob>> DecodeLogprobs(
    uint64_t sequence_id,
    const google::protobuf::RepeatedPtrField<v1::TokenLogprobMessage>& messages) {
  std::vector<TokenLogprob> logprobs;
  logprobs.reserve(messages.size());
  for (const v1::TokenLogprobMessage& message : messages) {
    if (message.top_tokens_size() != message.top_logprobs_size()) {
      return BadSequence(sequence_id, message.top_tokens_size(), " top tokens with ",
                         message.top_logprobs_size(), " log-probabilities");
    }
    logprobs.push_back({.token = message.token(),
                        .logprob = message.logprob(),
                        .rank = message.rank(),
                        .top_tokens = ToVector(message.top_tokens()),
                        .top_logprobs = ToVector(message.top_logprobs())});
  }
  return logprobs;
}

template <typename Message>
absl::StatusOr<Message> Parse(std::string_view bytes, const char* what) {
  Message message;
  // Above what protobuf can hold, its size argument would wrap.
  if (bytes.size() > static_cast<size_t>(INT32_MAX) ||
      !message.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, " of ", bytes.size(), " bytes is damaged or over 2 GiB"));
  }
  if (message.sequences_size() > kMaxSequences) {
    return absl::InvalidArgumentError(absl::StrCat(what, " has ", message.sequences_size(),
                                                   " sequences; at most ", kMaxSequences,
                                                   " are allowed"));
  }
  return message;
}

}  // namespace

std::string EncodeStepPlan(const StepPlan& plan) {
  v1::StepPlanMessage message;
  message.set_epoch(plan.epoch);
  message.set_step(plan.step);
  for (const SequencePlan& sequence : plan.sequences) {
    EncodeSequence(sequence, *message.add_sequences());
  }
  return message.SerializeAsString();
}

absl::StatusOr<StepPlan> DecodeStepPlan(std::string_view bytes) {
  PL_ASSIGN_OR_RETURN(const auto message, Parse<v1::StepPlanMessage>(bytes, "step plan"));
  StepPlan plan{.epoch = message.epoch(), .step = message.step()};
  plan.sequences.reserve(message.sequences_size());
  for (const v1::SequencePlanMessage& sequence : message.sequences()) {
    PL_ASSIGN_OR_RETURN(SequencePlan decoded, DecodeSequence(sequence));
    plan.sequences.push_back(std::move(decoded));
  }
  if (plan.num_tokens() > kMaxStepTokens) {
    return absl::InvalidArgumentError(absl::StrCat(
        "step plan has ", plan.num_tokens(), " tokens; at most ", kMaxStepTokens, " are allowed"));
  }
  return plan;
}

std::string EncodeStepResult(const StepResult& result) {
  v1::StepResultMessage message;
  message.set_epoch(result.epoch);
  message.set_step(result.step);
  for (const SequenceResult& sequence : result.sequences) {
    v1::SequenceResultMessage& encoded = *message.add_sequences();
    encoded.set_sequence_id(sequence.sequence_id);
    encoded.set_token(sequence.token);
    for (const TokenLogprob& drawn : sequence.drawn) EncodeLogprob(drawn, *encoded.add_drawn());
    for (const TokenLogprob& scored : sequence.scored) EncodeLogprob(scored, *encoded.add_scored());
    encoded.set_logits(sequence.logits);
  }
  return message.SerializeAsString();
}

absl::StatusOr<StepResult> DecodeStepResult(std::string_view bytes) {
  PL_ASSIGN_OR_RETURN(auto message, Parse<v1::StepResultMessage>(bytes, "step result"));
  StepResult result{.epoch = message.epoch(), .step = message.step()};
  result.sequences.reserve(message.sequences_size());
  for (v1::SequenceResultMessage& sequence : *message.mutable_sequences()) {
    const uint64_t id = sequence.sequence_id();
    if (sequence.token() < -1) return BadSequence(id, "drawn token ", sequence.token());
    if (sequence.drawn_size() > 1) {
      return BadSequence(id, sequence.drawn_size(), " drawn tokens; at most one is right");
    }
    if (sequence.scored_size() > kMaxStepTokens) {
      return BadSequence(id, sequence.scored_size(), " scored tokens; at most ", kMaxStepTokens,
                         " are allowed");
    }
    SequenceResult& decoded = result.sequences.emplace_back();
    decoded.sequence_id = id;
    decoded.token = sequence.token();
    PL_ASSIGN_OR_RETURN(decoded.drawn, DecodeLogprobs(id, sequence.drawn()));
    PL_ASSIGN_OR_RETURN(decoded.scored, DecodeLogprobs(id, sequence.scored()));
    decoded.logits = std::move(*sequence.mutable_logits());
  }
  return result;
}

}  // namespace plumbline
