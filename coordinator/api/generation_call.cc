#include "coordinator/api/generation_call.h"

#include <iterator>
#include <mutex>
#include <string>
#include <utility>

#include "absl/time/clock.h"
#include "coordinator/api/api_error.h"

namespace plumbline {
namespace {

template <typename T>
void MoveAppend(std::vector<T>& to, std::vector<T>& from) {
  to.insert(to.end(), std::make_move_iterator(from.begin()), std::make_move_iterator(from.end()));
}

void Append(GenerationOutput& total, GenerationOutput& part) {
  total.text += part.text;
  MoveAppend(total.tokens, part.tokens);
  MoveAppend(total.logprobs, part.logprobs);
  MoveAppend(total.prompt_logprobs, part.prompt_logprobs);
  total.finish = part.finish;
  total.stop_match = std::move(part.stop_match);
}

std::string Event(const std::string& data) { return "data: " + data + "\n\n"; }

class GenerationCall : public std::enable_shared_from_this<GenerationCall> {
 public:
  explicit GenerationCall(GenerationCallOptions options)
      : options_(std::move(options)),
        choices_(options_.requests.size()),
        num_unfinished_(options_.requests.size()) {
    usage_.prompt_tokens = options_.prompt_tokens;
  }

  void Start() {
    options_.trace->BeginGeneration({.model = options_.model,
                                     .prompt_tokens = options_.prompt_tokens,
                                     .num_choices = static_cast<int64_t>(options_.requests.size())});
    for (size_t i = 0; i < options_.requests.size(); ++i) {
      absl::StatusOr<uint64_t> handle = options_.engine->Submit(
          std::move(options_.requests[i]), [self = shared_from_this(), i](GenerationOutput output) {
            self->OnOutput(i, std::move(output));
          });
      if (!handle.ok()) {
        CancelSequences();
        is_done_ = true;
        options_.ticket.Refund();
        return options_.responder->Respond(ErrorResponseOf(handle.status()));
      }
      const std::lock_guard lock(mutex_);
      handles_.push_back(*handle);
    }
    options_.responder->OnCancel([self = shared_from_this()] { self->CancelSequences(); });
    const std::lock_guard lock(mutex_);
    is_open_ = true;
    if (!inbox_.empty()) Wake();
  }

 private:
  struct Arrival {
    size_t choice;
    absl::Time time;
    GenerationOutput output;
  };

  void OnOutput(size_t choice, GenerationOutput output) {
    const std::lock_guard lock(mutex_);
    inbox_.push_back({choice, absl::Now(), std::move(output)});
    if (is_open_ && !is_awake_) Wake();
  }

  void Wake() {  // with the lock held
    is_awake_ = true;
    options_.responder->Post([self = shared_from_this()] { self->Work(); });
  }

  // On one handler thread at a time; what follows is only used there.
  void Work() {
    while (true) {
      std::vector<Arrival> arrivals;
      {
        const std::lock_guard lock(mutex_);
        if (inbox_.empty()) {
          is_awake_ = false;
          return;
        }
        arrivals.swap(inbox_);
      }
      std::string events;
      for (Arrival& arrival : arrivals) {
        if (is_done_) break;
        Take(arrival, events);
      }
      if (!events.empty() && !is_done_) Send(events);
      if (num_unfinished_ == 0 && !is_done_) Finish();
    }
  }

  void Take(Arrival& arrival, std::string& events) {
    GenerationOutput& output = arrival.output;
    if (output.finish == FinishReason::kError || output.finish == FinishReason::kCancelled) {
      if (!events.empty()) Send(events);  // what came before is the client's
      return Fail(output.status);
    }
    const auto num_tokens = static_cast<int64_t>(output.tokens.size());
    options_.trace->AddTokens(static_cast<int64_t>(arrival.choice), num_tokens, arrival.time);
    usage_.completion_tokens += num_tokens;
    options_.ticket.Charge(num_tokens);
    if (output.finish != FinishReason::kNone) {
      --num_unfinished_;
      // Of each prompt's first choice, as prompt_tokens counts a prompt once.
      const bool is_first = arrival.choice % options_.choices_per_prompt == 0;
      if (is_first) {
        usage_.cached_tokens += output.num_prompt_cached;
        options_.trace->AddCached(output.num_prompt_cached);
      }
    }
    if (!options_.stream) return Append(choices_[arrival.choice], output);
    for (const ResponseJson& chunk :
         options_.format->Chunks(static_cast<int>(arrival.choice), output)) {
      events += Event(Print(chunk));
    }
  }

  // The stream begins with its first token, so that what fails before has a status of its own.
  void Send(const std::string& events) {
    if (!std::exchange(is_streaming_, true)) {
      return options_.responder->StartStream({.content_type = "text/event-stream; charset=utf-8",
                                              .headers = {{"Cache-Control", "no-cache"}},
                                              .body = events});
    }
    if (!options_.responder->Write(events)) {
      is_done_ = true;
      options_.ticket.Release();
      CancelSequences();
    }
  }

  void Finish() {
    is_done_ = true;
    options_.ticket.Release();
    if (!options_.stream) {
      return options_.responder->Respond({.body = Print(options_.format->Whole(choices_, usage_))});
    }
    std::string events;
    if (options_.include_usage) events += Event(Print(options_.format->UsageChunk(usage_)));
    options_.responder->Write(events + Event("[DONE]"));
    options_.responder->Finish();
  }

  void Fail(const absl::Status& status) {
    is_done_ = true;
    options_.ticket.Release();
    CancelSequences();
    if (!is_streaming_) return options_.responder->Respond(ErrorResponseOf(status));
    options_.trace->End(HttpStatusOf(status));  // the stream's own status was 200
    options_.responder->Write(Event(ErrorBody(status)) + Event("[DONE]"));
    options_.responder->Finish();
  }

  void CancelSequences() {
    std::vector<uint64_t> handles;
    {
      const std::lock_guard lock(mutex_);
      handles = handles_;
    }
    for (const uint64_t handle : handles) options_.engine->Cancel(handle);
  }

  GenerationCallOptions options_;
  std::vector<GenerationOutput> choices_;  // what a stream has sent is not kept
  size_t num_unfinished_;
  Usage usage_;
  bool is_streaming_ = false;
  bool is_done_ = false;

  std::mutex mutex_;
  std::vector<Arrival> inbox_;
  std::vector<uint64_t> handles_;
  bool is_open_ = false;   // all sequences are submitted
  bool is_awake_ = false;  // Work is posted or running
};

}  // namespace

void StartGenerationCall(GenerationCallOptions options) {
  std::make_shared<GenerationCall>(std::move(options))->Start();
}

}  // namespace plumbline
