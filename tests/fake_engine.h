// FakeEngine: an Engine that answers from a script: the generated tokens are those of a given text,
// the log-probabilities a function of token and position. Runs its own thread, as the true one
// does. For tests of the API only.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "coordinator/engine/engine.h"
#include "coordinator/text/detokenizer.h"
#include "coordinator/text/tokenizer.h"

namespace plumbline {

class FakeEngine : public Engine {
 public:
  explicit FakeEngine(const Tokenizer& tokenizer)
      : tokenizer_(tokenizer), thread_([this] { Run(); }) {}
  ~FakeEngine() override {
    {
      const std::lock_guard lock(mutex_);
      is_stopping_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  // What every request is answered with, followed by an end token.
  void SetAnswer(const std::string& text, int32_t eos) {
    const std::lock_guard lock(mutex_);
    answer_ = *tokenizer_.Encode(text);
    answer_.push_back(eos);
    eos_ = eos;
  }
  void RefuseWith(absl::Status status) {
    const std::lock_guard lock(mutex_);
    refusal_ = std::move(status);
  }
  // After so many tokens requests end with `status`.
  void FailAfter(size_t num_tokens, absl::Status status) {
    const std::lock_guard lock(mutex_);
    fail_after_ = num_tokens;
    failure_ = std::move(status);
  }
  // Prompt tokens that every request's end reports as cached.
  void SetPromptCached(int64_t num_tokens) {
    const std::lock_guard lock(mutex_);
    num_prompt_cached_ = num_tokens;
  }
  // Requests wait for ever before their first token, or after so many.
  void StallAfter(size_t num_tokens) {
    const std::lock_guard lock(mutex_);
    stall_after_ = num_tokens;
  }
  void SetStats(const EngineStats& stats) {
    const std::lock_guard lock(mutex_);
    stats_ = stats;
  }
  std::vector<GenerationRequest> requests() {
    const std::lock_guard lock(mutex_);
    return requests_;
  }
  int num_active() {
    const std::lock_guard lock(mutex_);
    return static_cast<int>(active_.size());
  }
  int num_cancelled() {
    const std::lock_guard lock(mutex_);
    return num_cancelled_;
  }

  // Exact in f32; the chosen token is the first of its alternatives at even positions, the second
  // at odd ones.
  static TokenLogprob LogprobOf(int32_t token, size_t position, int32_t num_top) {
    const bool is_best = position % 2 == 0;
    TokenLogprob entry{.token = token, .logprob = -0.1F - 0.01F * static_cast<float>(position)};
    entry.rank = is_best ? 1 : 2;
    for (int32_t i = 0; i < num_top; ++i) {
      const bool is_token = i == (is_best ? 0 : 1);
      entry.top_tokens.push_back(is_token ? token : 300 + i);
      const float better = i == 0 && !is_best ? 0.05F : 0;
      entry.top_logprobs.push_back(
          is_token ? entry.logprob : entry.logprob + better - 0.001F * static_cast<float>(i));
    }
    return entry;
  }

  absl::StatusOr<uint64_t> Submit(GenerationRequest request, Sink sink) override {
    const std::lock_guard lock(mutex_);
    if (!refusal_.ok()) return refusal_;
    if (stats_.draining) return absl::UnavailableError("draining");
    requests_.push_back(request);
    const uint64_t handle = next_handle_++;
    active_.emplace(handle, Sequence{.request = std::move(request),
                                     .sink = std::move(sink),
                                     .detokenizer = Detokenizer(tokenizer_, {})});
    changed_.notify_all();
    return handle;
  }
  void Cancel(uint64_t handle) override {
    const std::lock_guard lock(mutex_);
    const auto found = active_.find(handle);
    if (found == active_.end()) return;
    found->second.is_cancelled = true;
    changed_.notify_all();
  }
  bool Drain(absl::Time) override {
    const std::lock_guard lock(mutex_);
    stats_.draining = true;
    return active_.empty();
  }
  EngineStats Stats() const override {
    const std::lock_guard lock(mutex_);
    EngineStats stats = stats_;
    stats.running = static_cast<int64_t>(active_.size());
    return stats;
  }

 private:
  struct Sequence {
    GenerationRequest request;
    Sink sink;
    Detokenizer detokenizer;
    size_t num_tokens = 0;
    bool is_cancelled = false;
  };

  // One token per sequence and round, as a step gives.
  void Run() {
    std::unique_lock lock(mutex_);
    while (!is_stopping_) {
      std::vector<std::pair<Sink, GenerationOutput>> outputs;
      for (auto it = active_.begin(); it != active_.end();) {
        GenerationOutput output{.num_prompt_cached = num_prompt_cached_};
        const bool is_new = Advance(it->second, output);
        const bool is_end = output.finish != FinishReason::kNone;
        if (is_new) outputs.emplace_back(it->second.sink, std::move(output));
        it = is_end ? active_.erase(it) : std::next(it);
      }
      if (outputs.empty()) {
        changed_.wait_for(lock, std::chrono::milliseconds(20));
        continue;
      }
      lock.unlock();
      for (auto& [sink, output] : outputs) sink(std::move(output));
      outputs.clear();
      lock.lock();
    }
  }

  bool Advance(Sequence& sequence, GenerationOutput& output) {
    const GenerationRequest& request = sequence.request;
    if (sequence.is_cancelled || absl::Now() > request.deadline) {
      ++num_cancelled_;
      output.finish = FinishReason::kCancelled;
      output.status = sequence.is_cancelled ? absl::CancelledError("cancelled")
                                            : absl::DeadlineExceededError("deadline");
      return true;
    }
    if (sequence.num_tokens >= stall_after_) return false;
    if (sequence.num_tokens >= fail_after_) {
      output.finish = FinishReason::kError;
      output.status = failure_;
      return true;
    }
    if (sequence.num_tokens == 0 && request.num_prompt_logprobs >= 0) {
      for (size_t i = 1; i < request.prompt.size(); ++i) {
        output.prompt_logprobs.push_back(
            LogprobOf(request.prompt[i], i, request.num_prompt_logprobs));
      }
    }
    if (request.max_tokens == 0) {
      output.finish = FinishReason::kLength;
      return true;
    }
    const int32_t token = answer_[sequence.num_tokens % answer_.size()];
    const size_t position = request.prompt.size() + sequence.num_tokens;
    ++sequence.num_tokens;
    output.tokens = {token};
    if (request.num_top_logprobs >= 0) {
      output.logprobs = {LogprobOf(token, position, request.num_top_logprobs)};
    }
    if (token != eos_) output.text = sequence.detokenizer.Push(token);
    if (token == eos_ && !request.ignore_eos) {
      output.finish = FinishReason::kStop;
    } else if (static_cast<int64_t>(sequence.num_tokens) == request.max_tokens) {
      output.text += sequence.detokenizer.Finish();
      output.finish = FinishReason::kLength;
    }
    return true;
  }

  const Tokenizer& tokenizer_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::map<uint64_t, Sequence> active_;
  std::vector<GenerationRequest> requests_;
  std::vector<int32_t> answer_ = {0};
  int32_t eos_ = -1;
  absl::Status refusal_;
  absl::Status failure_;
  size_t fail_after_ = SIZE_MAX;
  size_t stall_after_ = SIZE_MAX;
  EngineStats stats_ = {.ready = true};
  uint64_t next_handle_ = 1;
  int num_cancelled_ = 0;
  int64_t num_prompt_cached_ = 0;
  bool is_stopping_ = false;
  std::thread thread_;
};

}  // namespace plumbline
