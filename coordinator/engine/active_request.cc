#include "coordinator/engine/active_request.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"

namespace plumbline {
namespace {

bool Contains(const std::vector<int32_t>& list, int32_t token) {
  return std::find(list.begin(), list.end(), token) != list.end();
}

absl::Status CheckSampling(const SamplingParams& sampling, int64_t vocab_size) {
  const auto in_range = [](float value, float low, float high) {  // false for NaN
    return value >= low && value <= high;
  };
  constexpr float kMax = 1e6f;
  if (!in_range(sampling.temperature, 0, kMax)) {
    return absl::InvalidArgumentError("temperature must be 0 or more");
  }
  if (sampling.top_k < 0) return absl::InvalidArgumentError("top_k must be 0 (off) or more");
  if (!in_range(sampling.top_p, 0, 1) || sampling.top_p == 0) {
    return absl::InvalidArgumentError("top_p must be in (0, 1]");
  }
  if (!in_range(sampling.min_p, 0, 1)) {
    return absl::InvalidArgumentError("min_p must be in [0, 1]");
  }
  if (!in_range(sampling.repetition_penalty, 0, kMax) || sampling.repetition_penalty == 0) {
    return absl::InvalidArgumentError("repetition_penalty must be more than 0");
  }
  if (!in_range(sampling.presence_penalty, -kMax, kMax)) {
    return absl::InvalidArgumentError("presence_penalty must be a finite number");
  }
  if (!in_range(sampling.frequency_penalty, -kMax, kMax)) {
    return absl::InvalidArgumentError("frequency_penalty must be a finite number");
  }
  absl::flat_hash_set<int32_t> biased;
  for (const auto& [token, bias] : sampling.logit_bias) {
    if (token < 0 || token >= vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat(
          "logit_bias token ", token, " is not in the vocabulary [0, ", vocab_size, ")"));
    }
    if (!in_range(bias, -kMax, kMax)) {
      return absl::InvalidArgumentError(
          absl::StrCat("logit_bias of token ", token, " must be a finite number"));
    }
    if (!biased.insert(token).second) {
      return absl::InvalidArgumentError(absl::StrCat("logit_bias names token ", token, " twice"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckRequest(const GenerationRequest& request, const EngineOptions& options,
                          const Tokenizer* tokenizer) {
  if (request.prompt.empty()) return absl::InvalidArgumentError("prompt has no tokens");
  if (request.max_tokens < 0) return absl::InvalidArgumentError("max_tokens must not be negative");
  const int64_t num_prompt = static_cast<int64_t>(request.prompt.size());
  const int64_t needed = num_prompt + (request.max_tokens > 0 ? 1 : 0);
  if (needed > options.max_context_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("prompt has ", num_prompt, " tokens; the context of ",
                     options.max_context_tokens, " tokens must hold it and what is generated"));
  }
  for (const int32_t token : request.prompt) {
    if (token < 0 || token >= options.vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat(
          "prompt token ", token, " is not in the vocabulary [0, ", options.vocab_size, ")"));
    }
  }
  if (request.num_top_logprobs > options.vocab_size ||
      request.num_prompt_logprobs > options.vocab_size) {
    return absl::InvalidArgumentError(
        absl::StrCat("more log-probabilities than the vocabulary of ", options.vocab_size));
  }
  if (!request.stop.empty() && tokenizer == nullptr) {
    return absl::InvalidArgumentError("stop strings need a tokenizer; this model has none");
  }
  for (const std::string& stop : request.stop) {
    if (stop.empty()) return absl::InvalidArgumentError("a stop string is empty");
  }
  return CheckSampling(request.sampling, options.vocab_size);
}

ActiveRequest::ActiveRequest(uint64_t id, GenerationRequest request, Engine::Sink sink,
                             const EngineOptions& options, const Tokenizer* tokenizer)
    : sink_(std::move(sink)),
      options_(options),
      sequence_(id, std::move(request), options.max_context_tokens) {
  const GenerationRequest& kept = sequence_.request();
  if (tokenizer != nullptr) {
    text_.emplace(*tokenizer, kept.skip_special_tokens, kept.stop, kept.include_stop);
  }
}

absl::StatusOr<GenerationOutput> ActiveRequest::Apply(const ScheduledRows& rows,
                                                      SequenceResult result) {
  GenerationOutput output{.num_prompt_cached = sequence_.num_prompt_cached};
  if (result.sequence_id != rows.sequence_id) {
    return absl::InternalError(absl::StrCat("step result names sequence ", result.sequence_id,
                                            " where the plan has ", rows.sequence_id));
  }
  absl::Status status = TakeScores(rows, result, output);
  if (status.ok()) status = TakeLogits(rows, result, output);
  if (status.ok() && rows.draw_token) status = TakeToken(result, output);
  if (!status.ok()) return status;
  const int64_t end = rows.start + rows.count;
  if (sequence_.request().max_tokens == 0 && end == sequence_.num_prompt()) {
    output.finish = FinishReason::kLength;
  }
  return output;
}

std::optional<absl::Duration> ActiveRequest::TakeQueueTime(absl::Time now) {
  const std::optional<absl::Time> since = std::exchange(queued_since_, std::nullopt);
  if (!since) return std::nullopt;
  return now - *since;
}

GenerationOutput ActiveRequest::TimeOut() {
  GenerationOutput output{.num_prompt_cached = sequence_.num_prompt_cached};
  if (sequence_.num_generated() == 0) {
    output.finish = FinishReason::kError;
    output.status = absl::DeadlineExceededError(queued_since_ ? "the request's deadline passed while it waited to start"
                                                              : "the request's deadline passed before its first token");
    return output;
  }
  output.finish = FinishReason::kTimeout;
  output.status = absl::DeadlineExceededError(
      absl::StrCat("the request's deadline passed after ", sequence_.num_generated(), " tokens"));
  if (text_) output.text = text_->Finish();
  return output;
}

absl::Status ActiveRequest::TakeScores(const ScheduledRows& rows, SequenceResult& result,
                                       GenerationOutput& output) {
  if (static_cast<int64_t>(result.scored.size()) != rows.num_scored) {
    return absl::InternalError(absl::StrCat("step result has ", result.scored.size(),
                                            " prompt log-probabilities; planned were ",
                                            rows.num_scored));
  }
  if (rows.num_scored == 0) return absl::OkStatus();
  const size_t num_top = std::max(sequence_.request().num_prompt_logprobs, 0);
  for (TokenLogprob& score : result.scored) {
    // The step may have been asked for more, for the drawn token's sake.
    if (score.top_tokens.size() > num_top) score.top_tokens.resize(num_top);
    if (score.top_logprobs.size() > num_top) score.top_logprobs.resize(num_top);
    sequence_.scores.push_back(std::move(score));
  }
  sequence_.num_scores += rows.num_scored;
  if (sequence_.num_scores == sequence_.num_scores_wanted()) {
    output.prompt_logprobs = std::exchange(sequence_.scores, {});
  }
  return absl::OkStatus();
}

absl::Status ActiveRequest::TakeLogits(const ScheduledRows& rows, SequenceResult& result,
                                       GenerationOutput& output) {
  if (rows.first_logit_row < 0) return absl::OkStatus();
  const size_t row_bytes = static_cast<size_t>(options_.vocab_size) * sizeof(float);
  if (result.logits.size() != static_cast<size_t>(rows.count) * row_bytes) {
    return absl::InternalError(absl::StrCat("step result has ", result.logits.size(),
                                            " bytes of logits; ", rows.count, " rows of ",
                                            row_bytes, " were planned"));
  }
  result.logits.erase(0, static_cast<size_t>(rows.first_logit_row - rows.start) * row_bytes);
  output.logits = std::move(result.logits);
  sequence_.num_logit_rows = rows.start + rows.count;
  return absl::OkStatus();
}

absl::Status ActiveRequest::TakeToken(SequenceResult& result, GenerationOutput& output) {
  const GenerationRequest& request = sequence_.request();
  if (result.token < 0 || result.token >= options_.vocab_size) {
    return absl::InternalError(absl::StrCat(
        "drawn token ", result.token, " is not in the vocabulary [0, ", options_.vocab_size, ")"));
  }
  if (request.num_top_logprobs >= 0) {
    if (result.drawn.size() != 1) {
      return absl::InternalError("step result lacks the drawn token's log-probability");
    }
    TokenLogprob& drawn = result.drawn[0];
    const size_t num_top = request.num_top_logprobs;
    if (drawn.top_tokens.size() > num_top) drawn.top_tokens.resize(num_top);
    if (drawn.top_logprobs.size() > num_top) drawn.top_logprobs.resize(num_top);
    output.logprobs.push_back(std::move(drawn));
  }
  sequence_.Append(result.token);
  output.tokens.push_back(result.token);
  ApplyStopRules(result.token, output);
  return absl::OkStatus();
}

void ActiveRequest::ApplyStopRules(int32_t token, GenerationOutput& output) {
  const GenerationRequest& request = sequence_.request();
  const bool is_stop_token = Contains(request.stop_token_ids, token) ||
                             (!request.ignore_eos && Contains(options_.eos_token_ids, token));
  if (is_stop_token) {
    output.finish = FinishReason::kStop;
  } else if (sequence_.num_known() >= sequence_.max_known()) {
    output.finish = FinishReason::kLength;
  }
  if (!text_) return;
  // The token that ends an output is not part of its text, just as a stop string is not.
  if (!is_stop_token || request.include_stop) output.text = text_->Push(token);
  if (output.finish != FinishReason::kNone) output.text += text_->Finish();
  if (text_->stopped()) {
    output.finish = FinishReason::kStop;
    output.stop_match = text_->stop_match();
  }
}

bool IsEmpty(const GenerationOutput& output) {
  return output.text.empty() && output.tokens.empty() && output.prompt_logprobs.empty() &&
         output.logits.empty() && output.finish == FinishReason::kNone;
}

}  // namespace plumbline
