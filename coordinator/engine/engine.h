// Engine: owns every sequence. One thread at its own pace: drain the inbox, schedule, submit, apply results, stream out.
// At most one step in flight per sequence, up to pipeline_stages steps in flight. When a cluster is lost, sequences keep
// their tokens and are replayed on the next epoch; their streams go on with the tokens they would have had.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "coordinator/engine/request_owner.h"
#include "coordinator/engine/step_runner.h"
#include "coordinator/engine/step_timer.h"
#include "parallel/step_plan.h"

namespace plumbline {

class Tokenizer;  // coordinator/text/tokenizer.h

struct SamplingParams {
  float temperature = 1;  // 0: greedy
  int32_t top_k = 0;      // 0: off
  float top_p = 1;
  float min_p = 0;
  uint64_t seed = 0;
  float repetition_penalty = 1;
  float presence_penalty = 0;
  float frequency_penalty = 0;
  std::vector<std::pair<int32_t, float>> logit_bias;  // distinct tokens
};

struct GenerationRequest {
  std::string id;                     // for logs
  std::vector<int32_t> prompt;        // at least one token
  SamplingParams sampling;
  int64_t max_tokens = 0;             // to generate; 0: score the prompt only
  std::vector<std::string> stop;      // text that ends the output and is not part of it
  bool include_stop = false;
  std::vector<int32_t> stop_token_ids;  // beside the model's eos ids
  bool ignore_eos = false;
  bool skip_special_tokens = true;    // in Output::text
  int32_t num_top_logprobs = -1;      // of generated tokens; -1: none
  int32_t num_prompt_logprobs = -1;   // log-probabilities of prompt[1..] with so many alternatives; -1: none
  bool return_logits = false;         // f32 logits of every position, for audits
  absl::Time deadline = absl::InfiniteFuture();
  RequestOwner owner;
};

// kTimeout: the deadline passed after the first token; what was generated stands.
enum class FinishReason : uint8_t { kNone, kStop, kLength, kTimeout, kCancelled, kError };

// What is new of a request since its last Output. Token logprobs are parallel to `tokens`.
struct GenerationOutput {
  std::string text;                          // complete UTF-8; stop strings never leak
  std::vector<int32_t> tokens;
  std::vector<TokenLogprob> logprobs;
  std::vector<TokenLogprob> prompt_logprobs; // entry i is prompt[i + 1]'s; once, whole, before or with the first token
  std::string logits;                        // f32 [new rows, V], when asked for
  FinishReason finish = FinishReason::kNone;
  std::string stop_match;                    // the stop string or empty
  int64_t num_prompt_cached = 0;             // prompt tokens that came from the prefix cache
  absl::Status status;                       // of kError, kCancelled and kTimeout; DEADLINE_EXCEEDED: before any token
};

struct EngineOptions {
  int64_t max_queued_requests = 1024;  // waiting; more are refused with RESOURCE_EXHAUSTED
  int64_t max_running_sequences = 256;
  int64_t max_context_tokens = 0;      // prompt + generated; the model's limit or less
  int64_t vocab_size = 0;
  std::vector<int32_t> eos_token_ids;
  bool prefix_cache = true;            // prompts take over what the caches hold of them
  int64_t min_saved_prompt = 0;        // scheduler.h
};

// What the sequences of one key do now.
struct KeyLoad {
  int64_t key_id = 0;  // -1: all keys beyond those listed
  std::string name;    // "others" of those
  int64_t queued = 0;
  int64_t running = 0;
};

// Snapshot for metrics and the status page.
struct EngineStats {
  int64_t queued = 0;
  int64_t running = 0;
  int64_t blocks_total = 0;
  int64_t blocks_used = 0;
  int64_t state_slots_total = 0;
  int64_t state_slots_used = 0;
  uint64_t requests_accepted = 0;
  uint64_t requests_finished = 0;
  uint64_t requests_failed = 0;
  uint64_t requests_cancelled = 0;
  uint64_t requests_refused = 0;
  int64_t blocks_cached = 0;     // findable by prompts to come, in use or not
  int64_t states_cached = 0;
  uint64_t prefix_query_tokens = 0;  // prompt tokens of sequences when they were admitted
  uint64_t prefix_hit_tokens = 0;    // those of them that the caches held
  uint64_t prompt_tokens = 0;    // computed
  uint64_t generated_tokens = 0;
  uint64_t steps = 0;
  std::array<StepTimes, kNumStepPhases> step_times;  // by phase
  StepTimes queue_times;         // of sequences, from their arrival to their first step
  std::vector<KeyLoad> keys;     // with sequences now, by priority and id; 50 at most and the rest together
  uint64_t preemptions = 0;
  uint64_t replays = 0;          // sequences replayed after a lost cluster
  uint64_t epoch = 0;
  bool ready = false;            // a cluster is there and steps finish
  bool draining = false;
  absl::Duration since_progress; // since the last finished step while work is under way; zero when idle
};

class Engine {
 public:
  using Sink = std::function<void(GenerationOutput)>;  // called on the engine thread; must not block

  // tokenizer may be null (no text, no stop strings). It and the runner outlive the engine.
  static std::unique_ptr<Engine> Create(EngineOptions options, StepRunner* runner, const Tokenizer* tokenizer);
  virtual ~Engine() = default;  // stops the runner; unfinished requests end with kCancelled

  // Thread-safe. INVALID_ARGUMENT: empty or too long a prompt, token out of range, more tokens than the cache can ever
  // hold; RESOURCE_EXHAUSTED: queue full; UNAVAILABLE: draining or no cluster will come back. The sink gets outputs until
  // one has finish != kNone, which is the last. Returns a handle for Cancel.
  virtual absl::StatusOr<uint64_t> Submit(GenerationRequest request, Sink sink) = 0;
  // Frees the sequence within a step; the sink gets kCancelled. Unknown or finished handles are ignored. Thread-safe.
  virtual void Cancel(uint64_t handle) = 0;
  // No new requests; returns when those under way are done or the deadline has passed (false). Thread-safe.
  virtual bool Drain(absl::Time deadline) = 0;
  virtual EngineStats Stats() const = 0;  // thread-safe
};

}  // namespace plumbline
