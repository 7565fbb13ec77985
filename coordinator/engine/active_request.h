// ActiveRequest: one accepted request: its sequence, its text, its sink, and the rules that end it.
// Used by the engine thread alone.
#pragma once

#include <cstdint>
#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "coordinator/engine/engine.h"
#include "coordinator/engine/scheduler.h"
#include "coordinator/engine/sequence.h"
#include "coordinator/engine/text_stream.h"

namespace plumbline {

// INVALID_ARGUMENT names the field and the range it must be in. tokenizer may be null.
absl::Status CheckRequest(const GenerationRequest& request, const EngineOptions& options,
                          const Tokenizer* tokenizer);

class ActiveRequest {
 public:
  // options and tokenizer (may be null) outlive the request, which has passed CheckRequest.
  ActiveRequest(uint64_t id, GenerationRequest request, Engine::Sink sink,
                const EngineOptions& options, const Tokenizer* tokenizer);

  Sequence& sequence() { return sequence_; }
  // The time it spent in the queue, when this is its first step.
  std::optional<absl::Duration> TakeQueueTime(absl::Time now);
  // What a finished step adds; finish != kNone when the request is done. INTERNAL: the result is
  // not what was planned.
  absl::StatusOr<GenerationOutput> Apply(const ScheduledRows& rows, SequenceResult result);
  // The end of a request whose deadline has passed.
  GenerationOutput TimeOut();
  void Deliver(GenerationOutput output) { sink_(std::move(output)); }

 private:
  absl::Status TakeScores(const ScheduledRows& rows, SequenceResult& result,
                          GenerationOutput& output);
  absl::Status TakeLogits(const ScheduledRows& rows, SequenceResult& result,
                          GenerationOutput& output);
  absl::Status TakeToken(SequenceResult& result, GenerationOutput& output);
  void ApplyStopRules(int32_t token, GenerationOutput& output);

  Engine::Sink sink_;
  const EngineOptions& options_;
  Sequence sequence_;
  std::optional<absl::Time> queued_since_ = absl::Now();  // empty once it has begun
  std::optional<TextStream> text_;  // empty without a tokenizer
};

// Whether an output says anything.
bool IsEmpty(const GenerationOutput& output);

}  // namespace plumbline
