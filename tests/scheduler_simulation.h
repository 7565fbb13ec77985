// One scheduler and one fake cluster, driven by hand.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/engine/scheduler.h"
#include "gtest/gtest.h"
#include "tests/fake_cluster.h"

namespace plumbline {

class Simulation {
 public:
  explicit Simulation(ClusterCapacity capacity, int64_t max_running = 8, bool cache_prefixes = true,
                      int64_t min_saved_prompt = 0)
      : capacity_(capacity),
        scheduler_({.max_running = max_running,
                    .cache_prefixes = cache_prefixes,
                    .min_saved_prompt = min_saved_prompt}) {
    NewEpoch();
  }

  void NewEpoch() {
    scheduler_.Reset(++epoch_, capacity_);
    for (const auto& problem : cluster_ ? cluster_->problems() : std::vector<std::string>{}) {
      problems_.push_back(problem);
    }
    if (cluster_) num_loads_ += cluster_->num_loads();
    cluster_ = std::make_unique<FakeCluster>(capacity_);
    pending_.clear();
  }

  uint64_t Add(GenerationRequest request) {
    const uint64_t id = ++next_id_;
    sequences_[id] = std::make_unique<Sequence>(id, std::move(request), int64_t{1} << 20);
    scheduler_.Add(sequences_[id].get());
    return id;
  }

  void Cancel(uint64_t id) {
    scheduler_.Remove(sequences_.at(id).get());
    sequences_.erase(id);
  }

  bool Schedule() {
    std::optional<StepPlan> plan = scheduler_.Schedule();
    if (!plan) return false;
    EXPECT_EQ(plan->epoch, epoch_);
    for (const StepPlan& other : pending_) {
      for (const SequencePlan& a : other.sequences) {
        for (const SequencePlan& b : plan->sequences) EXPECT_NE(a.sequence_id, b.sequence_id);
      }
    }
    if (mutate) mutate(*plan);
    pending_.push_back(*std::move(plan));
    EXPECT_LE(pending_.size(), capacity_.pipeline_stages);
    return true;
  }

  void FinishOldest() {
    const StepPlan plan = std::move(pending_.front());
    pending_.pop_front();
    const StepResult result = cluster_->Run(plan);
    const std::vector<ScheduledRows> rows = scheduler_.FinishStep(plan.step);
    ASSERT_EQ(rows.size(), plan.sequences.size());
    for (size_t i = 0; i < rows.size(); ++i) {
      Sequence* sequence = rows[i].sequence;
      if (sequence == nullptr) continue;
      for (const TokenLogprob& score : result.sequences[i].scored)
        sequence->scores.push_back(score);
      sequence->num_scores += rows[i].num_scored;
      if (rows[i].draw_token) {
        sequence->Append(result.sequences[i].token);
        tokens_[sequence->id()].push_back(result.sequences[i].token);
      }
      if (rows[i].start + rows[i].count < sequence->num_prompt()) continue;
      if (sequence->num_known() == sequence->max_known()) Finish(*sequence);
    }
  }

  void Finish(Sequence& sequence) {
    const FakeAnswer expected = Undisturbed(sequence.request(), sequence.request().max_tokens);
    if (tokens_[sequence.id()] != expected.tokens) problems_.push_back("output differs");
    std::vector<float> scores;
    for (const TokenLogprob& score : sequence.scores) scores.push_back(score.logprob);
    if (sequence.request().num_prompt_logprobs >= 0 && scores != expected.prompt_logprobs) {
      problems_.push_back("prompt log-probabilities differ");
    }
    ++num_finished_;
    Cancel(sequence.id());
  }

  bool busy() const { return !sequences_.empty(); }
  bool pending() const { return !pending_.empty(); }
  Scheduler& scheduler() { return scheduler_; }
  const std::map<uint64_t, std::unique_ptr<Sequence>>& sequences() const { return sequences_; }
  const std::deque<StepPlan>& plans() const { return pending_; }
  int num_finished() const { return num_finished_; }
  int num_loads() const { return num_loads_ + cluster_->num_loads(); }
  std::vector<std::string> problems() const {
    std::vector<std::string> all = problems_;
    all.insert(all.end(), cluster_->problems().begin(), cluster_->problems().end());
    return all;
  }

  std::function<void(StepPlan&)> mutate;

 private:
  const ClusterCapacity capacity_;
  Scheduler scheduler_;
  std::unique_ptr<FakeCluster> cluster_;
  std::map<uint64_t, std::unique_ptr<Sequence>> sequences_;
  std::map<uint64_t, std::vector<int32_t>> tokens_;
  std::deque<StepPlan> pending_;
  std::vector<std::string> problems_;
  uint64_t epoch_ = 0;
  uint64_t next_id_ = 0;
  int num_finished_ = 0;
  int num_loads_ = 0;  // of clusters that are gone
};

}  // namespace plumbline
