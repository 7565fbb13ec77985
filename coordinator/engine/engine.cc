#include "coordinator/engine/engine.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

#include "absl/container/btree_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "coordinator/engine/active_request.h"
#include "coordinator/engine/scheduler.h"
#include "coordinator/engine/step_timer.h"
#include "kernels/check.h"

namespace plumbline {
namespace {

constexpr absl::Duration kLongestWait = absl::Hours(24 * 365);
constexpr size_t kMaxListedKeys = 50;

std::vector<KeyLoad> KeyLoadsOf(const FairQueue& queue) {
  std::vector<KeyLoad> loads;
  for (const auto& [key, flow] : queue.flows()) {
    if (!flow.is_present()) continue;
    const auto waiting = static_cast<int64_t>(flow.waiting.size());
    // A key whose priority was changed has two flows.
    const auto is_known = [&](const KeyLoad& load) { return load.key_id == flow.owner.key_id; };
    auto load = std::find_if(loads.begin(), loads.end(), is_known);
    if (load == loads.end() && loads.size() < kMaxListedKeys) {
      load = loads.insert(load, {.key_id = flow.owner.key_id, .name = flow.owner.name});
    } else if (load == loads.end()) {
      if (loads.size() == kMaxListedKeys) loads.push_back({.key_id = -1, .name = "others"});
      load = loads.end() - 1;
    }
    load->queued += waiting;
    load->running += flow.num_running;
  }
  return loads;
}

absl::Status DoesNotFit(const Sequence& sequence, const ClusterCapacity& capacity) {
  return absl::InvalidArgumentError(
      absl::StrCat("prompt and max_tokens need a cache of ", sequence.max_cached(),
                   " tokens; this cluster's holds ", capacity.num_blocks * kGridTokens));
}

// absl's infinite times overflow in a condition variable.
std::chrono::system_clock::time_point WakeTime(absl::Time time) {
  const absl::Time now = absl::Now();
  return absl::ToChronoTime(std::clamp(time, now - absl::Hours(1), now + kLongestWait));
}

class EngineImpl final : public Engine {
 public:
  EngineImpl(EngineOptions options, StepRunner* runner, const Tokenizer* tokenizer)
      : options_(std::move(options)),
        runner_(*runner),
        tokenizer_(tokenizer),
        scheduler_({.max_running = options_.max_running_sequences,
                    .cache_prefixes = options_.prefix_cache,
                    .min_saved_prompt = options_.min_saved_prompt}) {
    PL_CHECK(options_.vocab_size > 0 && options_.max_context_tokens > 0);
    PL_CHECK(options_.max_queued_requests > 0);
    thread_ = std::thread([this] { Run(); });
    // The listener only leaves mail: it may be called from within Submit, on the engine thread.
    runner_.Start([this](RunnerEvent event) {
      std::lock_guard lock(mutex_);
      inbox_.events.push_back(std::move(event));
      mail_came_.notify_one();
    });
  }

  ~EngineImpl() override {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
      mail_came_.notify_one();
    }
    thread_.join();
    runner_.Stop();
  }

  absl::StatusOr<uint64_t> Submit(GenerationRequest request, Sink sink) override;
  void Cancel(uint64_t handle) override;
  bool Drain(absl::Time deadline) override;
  EngineStats Stats() const override;

 private:
  struct Inbox {
    std::vector<std::unique_ptr<ActiveRequest>> submitted;
    absl::flat_hash_set<uint64_t> cancelled;
    std::vector<RunnerEvent> events;  // bounded by the steps in flight and the runner's rebuilds
    bool empty() const { return submitted.empty() && cancelled.empty() && events.empty(); }
  };

  // REQUIRES: mutex_ is held.
  absl::Status Admissible(const Sequence& sequence);

  // The rest runs on the engine thread.
  void Run();
  void Accept(std::unique_ptr<ActiveRequest> request);
  void Handle(const RunnerReady& ready);
  void Handle(const RunnerLost& lost);
  void Handle(StepResult& result);
  void LoseCaches();
  void CancelRequests(const absl::flat_hash_set<uint64_t>& handles);
  void EndExpired();
  void SubmitSteps();
  void End(ActiveRequest& request, GenerationOutput output);
  void EndWith(ActiveRequest& request, FinishReason finish, absl::Status status);
  void EndAll(FinishReason finish, const absl::Status& status);
  void PublishStats();

  const EngineOptions options_;
  StepRunner& runner_;
  const Tokenizer* const tokenizer_;

  // Of the engine thread.
  Scheduler scheduler_;
  StepTimer step_timer_;
  StepTimes queue_times_;
  absl::btree_map<uint64_t, std::unique_ptr<ActiveRequest>> active_;  // in order of arrival
  std::optional<uint64_t> epoch_;                                     // of the latest cluster
  std::optional<ClusterCapacity> cluster_;                            // empty while there is none

  mutable std::mutex mutex_;  // guards what follows
  std::condition_variable mail_came_;
  std::condition_variable went_idle_;
  Inbox inbox_;
  absl::flat_hash_set<uint64_t> live_;  // accepted, last output not yet given
  uint64_t next_handle_ = 1;
  std::optional<ClusterCapacity> capacity_;  // of the latest cluster
  absl::Status fatal_;                       // no cluster will come back
  bool draining_ = false;
  bool stopping_ = false;
  EngineStats stats_;
  absl::Time last_progress_ = absl::InfinitePast();

  std::thread thread_;
};

absl::StatusOr<uint64_t> EngineImpl::Submit(GenerationRequest request, Sink sink) {
  absl::Status status = CheckRequest(request, options_, tokenizer_);
  std::lock_guard lock(mutex_);
  if (status.ok()) {
    auto active = std::make_unique<ActiveRequest>(next_handle_, std::move(request), std::move(sink),
                                                  options_, tokenizer_);
    status = Admissible(active->sequence());
    if (status.ok()) {
      if (live_.empty()) last_progress_ = absl::Now();
      live_.insert(next_handle_);
      inbox_.submitted.push_back(std::move(active));
      mail_came_.notify_one();
      ++stats_.requests_accepted;
      return next_handle_++;
    }
  }
  ++stats_.requests_refused;
  return status;
}

absl::Status EngineImpl::Admissible(const Sequence& sequence) {
  if (draining_ || stopping_) {
    return absl::UnavailableError("draining: no new requests are accepted");
  }
  if (!fatal_.ok()) return fatal_;
  if (capacity_ && !Scheduler::Fits(*capacity_, sequence.max_cached())) {
    return DoesNotFit(sequence, *capacity_);
  }
  if (static_cast<int64_t>(live_.size()) - stats_.running >= options_.max_queued_requests) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the queue of ", options_.max_queued_requests, " requests is full"));
  }
  return absl::OkStatus();
}

void EngineImpl::Cancel(uint64_t handle) {
  std::lock_guard lock(mutex_);
  if (!live_.contains(handle)) return;
  inbox_.cancelled.insert(handle);
  mail_came_.notify_one();
}

bool EngineImpl::Drain(absl::Time deadline) {
  std::unique_lock lock(mutex_);
  draining_ = true;
  return went_idle_.wait_until(lock, WakeTime(deadline), [this] { return live_.empty(); });
}

EngineStats EngineImpl::Stats() const {
  std::lock_guard lock(mutex_);
  EngineStats stats = stats_;
  stats.queued = static_cast<int64_t>(live_.size()) - stats.running;
  stats.draining = draining_;
  if (!live_.empty()) stats.since_progress = absl::Now() - last_progress_;
  return stats;
}

void EngineImpl::Run() {
  while (true) {
    Inbox inbox;
    {
      std::unique_lock lock(mutex_);
      mail_came_.wait_until(lock, WakeTime(scheduler_.NextDeadline()),
                            [this] { return stopping_ || !inbox_.empty(); });
      inbox = std::exchange(inbox_, {});
      if (stopping_) {
        for (auto& request : inbox.submitted) {
          const uint64_t id = request->sequence().id();
          active_.emplace(id, std::move(request));
        }
        break;
      }
    }
    for (auto& request : inbox.submitted) Accept(std::move(request));
    for (RunnerEvent& event : inbox.events) {
      std::visit([this](auto& e) { Handle(e); }, event);
    }
    CancelRequests(inbox.cancelled);
    EndExpired();
    SubmitSteps();
    PublishStats();
  }
  EndAll(FinishReason::kCancelled, absl::CancelledError("the engine was stopped"));
}

void EngineImpl::Accept(std::unique_ptr<ActiveRequest> request) {
  ActiveRequest& accepted = *request;
  active_.emplace(accepted.sequence().id(), std::move(request));
  // The cluster may have come or gone between Submit and here.
  absl::Status status;
  {
    std::lock_guard lock(mutex_);
    status = fatal_;
  }
  if (status.ok() && cluster_ && !Scheduler::Fits(*cluster_, accepted.sequence().max_cached())) {
    status = DoesNotFit(accepted.sequence(), *cluster_);
  }
  if (!status.ok()) return EndWith(accepted, FinishReason::kError, status);
  scheduler_.Add(&accepted.sequence());
}

void EngineImpl::Handle(const RunnerReady& ready) {
  if (epoch_ && ready.epoch <= *epoch_) return;
  LoseCaches();
  // A request that came before any cluster was there has not been measured against its caches.
  std::vector<ActiveRequest*> too_large;
  for (const auto& [id, request] : active_) {
    if (!Scheduler::Fits(ready.capacity, request->sequence().max_cached())) {
      too_large.push_back(request.get());
    }
  }
  for (ActiveRequest* request : too_large) {
    EndWith(*request, FinishReason::kError, DoesNotFit(request->sequence(), ready.capacity));
  }
  epoch_ = ready.epoch;
  cluster_ = ready.capacity;
  scheduler_.Reset(ready.epoch, ready.capacity);
  std::lock_guard lock(mutex_);
  capacity_ = ready.capacity;
  last_progress_ = absl::Now();
}

void EngineImpl::Handle(const RunnerLost& lost) {
  if (!lost.fatal && lost.epoch != epoch_) return;
  LoseCaches();
  if (!lost.fatal) return;
  const absl::Status reason =
      absl::UnavailableError(absl::StrCat("the cluster is gone: ", lost.reason.message()));
  {
    std::lock_guard lock(mutex_);
    fatal_ = reason;
  }
  EndAll(FinishReason::kError, reason);
}

void EngineImpl::LoseCaches() {
  cluster_.reset();
  const int64_t num_lost = scheduler_.Lose();
  step_timer_.Lost();
  std::lock_guard lock(mutex_);
  stats_.replays += num_lost;
}

void EngineImpl::Handle(StepResult& result) {
  if (result.epoch != epoch_ || !cluster_) return;
  const std::vector<ScheduledRows> rows = scheduler_.FinishStep(result.step);
  if (rows.empty())
    return;  // not a step of ours; the runner's own deadline finds one that never comes
  const absl::Time now = absl::Now();
  step_timer_.Finished(now);
  {
    std::lock_guard lock(mutex_);
    last_progress_ = now;
    ++stats_.steps;
    for (const ScheduledRows& row : rows) {
      if (row.sequence == nullptr) continue;
      if (row.draw_token) ++stats_.generated_tokens;
      if (row.start < row.sequence->num_prompt()) {
        stats_.prompt_tokens +=
            std::min(row.start + row.count, row.sequence->num_prompt()) - row.start;
      }
    }
  }
  const bool complete = result.sequences.size() == rows.size();
  for (size_t i = 0; i < rows.size(); ++i) {
    if (rows[i].sequence == nullptr) continue;
    ActiveRequest& request = *active_.at(rows[i].sequence_id);
    absl::StatusOr<GenerationOutput> output =
        complete ? request.Apply(rows[i], std::move(result.sequences[i]))
                 : absl::InternalError(absl::StrCat("step result has ", result.sequences.size(),
                                                    " sequences; planned were ", rows.size()));
    if (!output.ok()) {
      EndWith(request, FinishReason::kError, output.status());
    } else if (output->finish != FinishReason::kNone) {
      End(request, *std::move(output));
    } else if (!IsEmpty(*output)) {
      request.Deliver(*std::move(output));
    }
  }
}

void EngineImpl::CancelRequests(const absl::flat_hash_set<uint64_t>& handles) {
  for (const uint64_t handle : handles) {
    const auto found = active_.find(handle);
    if (found == active_.end()) continue;
    EndWith(*found->second, FinishReason::kCancelled, absl::CancelledError("cancelled"));
  }
}

void EngineImpl::EndExpired() {
  for (const Sequence* sequence : scheduler_.Expired(absl::Now())) {
    ActiveRequest& request = *active_.at(sequence->id());
    End(request, request.TimeOut());
  }
}

void EngineImpl::SubmitSteps() {
  while (std::optional<StepPlan> plan = scheduler_.Schedule()) {
    const absl::Time now = absl::Now();
    step_timer_.Submitted(*plan, now);
    for (const SequencePlan& sequence : plan->sequences) {
      const auto waited = active_.at(sequence.sequence_id)->TakeQueueTime(now);
      if (waited) queue_times_.Observe(*waited);
    }
    runner_.Submit(*std::move(plan));
  }
}

void EngineImpl::End(ActiveRequest& request, GenerationOutput output) {
  const uint64_t id = request.sequence().id();
  const FinishReason finish = output.finish;
  scheduler_.Remove(&request.sequence());
  {
    std::lock_guard lock(mutex_);
    stats_.running = scheduler_.num_running();
    if (finish == FinishReason::kCancelled) {
      ++stats_.requests_cancelled;
    } else if (finish == FinishReason::kError) {
      ++stats_.requests_failed;
    } else {
      ++stats_.requests_finished;
    }
  }
  request.Deliver(std::move(output));
  active_.erase(id);
  std::lock_guard lock(mutex_);
  live_.erase(id);  // only now: Drain returns when every last output has been given
  if (live_.empty()) went_idle_.notify_all();
}

void EngineImpl::EndWith(ActiveRequest& request, FinishReason finish, absl::Status status) {
  GenerationOutput output;
  output.finish = finish;
  output.status = std::move(status);
  End(request, std::move(output));
}

void EngineImpl::EndAll(FinishReason finish, const absl::Status& status) {
  while (!active_.empty()) EndWith(*active_.begin()->second, finish, status);
}

void EngineImpl::PublishStats() {
  const BlockManager& blocks = scheduler_.blocks();
  std::vector<KeyLoad> keys = KeyLoadsOf(scheduler_.queue());
  std::lock_guard lock(mutex_);
  stats_.running = scheduler_.num_running();
  stats_.blocks_total = blocks.num_blocks();
  stats_.blocks_used = blocks.num_blocks() - blocks.num_free_blocks();
  stats_.state_slots_total = blocks.num_slots();
  stats_.state_slots_used = blocks.num_slots() - blocks.num_free_slots();
  stats_.blocks_cached = blocks.cache().num_blocks();
  stats_.states_cached = blocks.cache().num_states();
  stats_.prefix_query_tokens = scheduler_.num_prefix_queries();
  stats_.prefix_hit_tokens = scheduler_.num_prefix_hits();
  stats_.preemptions = scheduler_.num_preemptions();
  stats_.step_times = step_timer_.times();
  stats_.queue_times = queue_times_;
  stats_.keys = std::move(keys);
  stats_.epoch = epoch_.value_or(0);
  stats_.ready = cluster_.has_value();
}

}  // namespace

std::unique_ptr<Engine> Engine::Create(EngineOptions options, StepRunner* runner,
                                       const Tokenizer* tokenizer) {
  return std::make_unique<EngineImpl>(std::move(options), runner, tokenizer);
}

}  // namespace plumbline
