#include "coordinator/engine/scheduler.h"

#include <algorithm>
#include <utility>

#include "kernels/check.h"

namespace plumbline {
namespace {

int64_t BlocksFor(int64_t tokens) { return (tokens + kGridTokens - 1) / kGridTokens; }

// One token, drawn by the step before.
bool IsDecode(const Sequence& sequence) {
  return sequence.cache.num_computed >= sequence.num_prompt() &&
         sequence.cache.num_computed + 1 == sequence.num_known();
}

}  // namespace

Scheduler::Scheduler(SchedulerOptions options) : options_(options) {
  PL_CHECK(options_.max_running >= 1);
}

bool Scheduler::Fits(const ClusterCapacity& capacity, int64_t max_cached) {
  return BlocksFor(max_cached) <= capacity.num_blocks;
}

void Scheduler::Reset(uint64_t epoch, const ClusterCapacity& capacity) {
  PL_CHECK(capacity.max_step_tokens >= kGridTokens);
  PL_CHECK(capacity.pipeline_stages >= 1);
  Lose();
  epoch_ = epoch;
  capacity_ = capacity;
  blocks_ = BlockManager(capacity.num_blocks, capacity.num_state_slots);
}

int64_t Scheduler::Lose() {
  const int64_t num_lost = num_running();
  for (const auto& [id, sequence] : running_) {
    sequence->cache = {};
    waiting_.emplace(id, sequence);
  }
  running_.clear();
  for (const auto& [id, sequence] : waiting_) sequence->in_flight = false;
  in_flight_.clear();
  capacity_.reset();
  blocks_ = BlockManager(0, 0);
  return num_lost;
}

void Scheduler::Add(Sequence* sequence) {
  PL_CHECK(waiting_.empty() || waiting_.rbegin()->first < sequence->id());
  PL_CHECK(running_.empty() || running_.rbegin()->first < sequence->id());
  PL_CHECK(!capacity_ || Fits(*capacity_, sequence->max_cached()));
  waiting_.emplace(sequence->id(), sequence);
  deadlines_.emplace(sequence->request().deadline, sequence->id());
}

void Scheduler::Remove(Sequence* sequence) {
  if (running_.erase(sequence->id()) > 0) ReleaseCaches(*sequence);
  waiting_.erase(sequence->id());
  deadlines_.erase({sequence->request().deadline, sequence->id()});
  for (InFlightStep& step : in_flight_) {
    for (ScheduledRows& rows : step.rows) {
      if (rows.sequence == sequence) rows.sequence = nullptr;
    }
  }
}

std::optional<StepPlan> Scheduler::Schedule() {
  if (!capacity_ || num_steps_in_flight() >= capacity_->pipeline_stages) return std::nullopt;
  Draft draft;
  draft.plan.epoch = epoch_;
  draft.plan.step = next_step_;
  draft.record.step = next_step_;
  draft.budget = capacity_->max_step_tokens;
  ScheduleDecodes(draft);
  // Nobody is admitted past an older prompt that waits for budget.
  if (SchedulePrompts(draft)) Admit(draft);
  if (draft.plan.sequences.empty()) {
    PL_CHECK(!in_flight_.empty() || (running_.empty() && waiting_.empty()));
    return std::nullopt;
  }
  if (options_.cache_prefixes) KeepPrefixes(draft);
  ++next_step_;
  in_flight_.push_back(std::move(draft.record));
  return std::move(draft.plan);
}

void Scheduler::ScheduleDecodes(Draft& draft) {
  // With stages, decodes are dealt out over the steps that can be in flight, so that no stage
  // waits.
  const int64_t stages = capacity_->pipeline_stages;
  const int64_t seats = (num_running() + stages - 1) / stages;
  std::vector<Sequence*> ready;
  for (const auto& [id, sequence] : running_) {
    if (!sequence->in_flight && IsDecode(*sequence)) ready.push_back(sequence);
  }
  std::stable_sort(ready.begin(), ready.end(), [](const Sequence* a, const Sequence* b) {
    return a->last_step < b->last_step;
  });
  for (Sequence* sequence : ready) {
    if (draft.budget == 0 || static_cast<int64_t>(draft.plan.sequences.size()) >= seats) return;
    // One further up in the list may have preempted this one; one without room waits for its turn.
    if (!running_.contains(sequence->id()) || !EnsureBlocks(draft, *sequence)) continue;
    Plan(draft, *sequence, 1);
  }
}

bool Scheduler::SchedulePrompts(Draft& draft) {
  for (const auto& [id, sequence] : running_) {
    if (sequence->in_flight || IsDecode(*sequence)) continue;
    const int64_t count = NextCount(*sequence, draft.budget);
    if (count == 0) return false;
    Plan(draft, *sequence, count);
  }
  return true;
}

void Scheduler::Admit(Draft& draft) {
  while (!waiting_.empty() && num_running() < options_.max_running) {
    Sequence& sequence = *waiting_.begin()->second;
    if (sequence.in_flight) return;  // preempted; what it draws is about to arrive
    const Prefix prefix = FindPrefix(sequence);
    sequence.cache.num_computed = prefix.num_tokens();
    sequence.cache.branch = prefix.branch;
    const int64_t count = NextCount(sequence, draft.budget);
    if (count == 0 || !AcquireCaches(sequence, prefix)) {
      sequence.cache = {};
      return;
    }
    waiting_.erase(waiting_.begin());
    running_.emplace(sequence.id(), &sequence);
    Plan(draft, sequence, count);
  }
}

int64_t Scheduler::NextCount(Sequence& sequence, int64_t budget) {
  const int64_t computed = sequence.cache.num_computed;
  const int64_t save = NextSave(sequence);
  const int64_t left_of_prompt = (save > 0 ? save : sequence.num_prompt()) - computed;
  if (left_of_prompt > budget) return budget / kGridTokens * kGridTokens;
  if (save > 0) return left_of_prompt;
  return std::min(budget, sequence.num_known() - computed);
}

int64_t Scheduler::NextSave(Sequence& sequence) {
  const int64_t own_slot = sequence.cache.state_slot < 0 ? 1 : 0;  // that it has yet to take
  if (!options_.cache_prefixes || blocks_.num_free_slots() <= own_slot) return 0;
  const bool is_short = sequence.num_prompt() < options_.min_saved_prompt;
  const int64_t last = is_short ? 0 : (sequence.num_prompt() - 1) / kGridTokens * kGridTokens;
  for (const int64_t position : {sequence.cache.branch, last}) {
    if (position <= sequence.cache.num_computed) continue;
    const PrefixCache::Entry* known =
        blocks_.cache().Find(sequence.prompt_hashes()[position / kGridTokens - 1]);
    if (known == nullptr || known->slot < 0) return position;
  }
  return 0;
}

Scheduler::Prefix Scheduler::FindPrefix(Sequence& sequence) {
  Prefix prefix;
  if (!options_.cache_prefixes) return prefix;
  int64_t num_unwanted = sequence.num_prompt() - 1;  // leading rows nobody needs but for the caches
  if (sequence.num_scores < sequence.num_scores_wanted()) {
    num_unwanted = std::min(num_unwanted, sequence.num_scores);
  }
  if (sequence.request().return_logits) {
    num_unwanted = std::min(num_unwanted, sequence.num_logit_rows);
  }
  size_t num_usable = 0;
  for (int64_t i = 0; i < num_unwanted / kGridTokens; ++i) {
    const PrefixCache::Entry* entry = blocks_.cache().Find(sequence.prompt_hashes()[i]);
    if (entry == nullptr) break;
    prefix.blocks.push_back(entry->block);
    if (blocks_.num_slots() > 0 && entry->slot < 0) continue;
    num_usable = prefix.blocks.size();
    prefix.slot = entry->slot;
  }
  if (prefix.blocks.size() > num_usable) prefix.branch = prefix.num_tokens();
  prefix.blocks.resize(num_usable);
  return prefix;
}

void Scheduler::KeepPrefixes(Draft& draft) {
  for (const ScheduledRows& rows : draft.record.rows) {
    Sequence& sequence = *rows.sequence;
    const int64_t end = std::min(rows.start + rows.count, sequence.num_prompt()) / kGridTokens;
    for (int64_t i = rows.start / kGridTokens; i < end; ++i) {
      blocks_.Keep(sequence.prompt_hashes()[i], sequence.cache.blocks[i]);
    }
  }
  for (const auto& [hash, slot] : draft.saved) blocks_.KeepState(hash, slot);
}

void Scheduler::Plan(Draft& draft, Sequence& sequence, int64_t count) {
  const GenerationRequest& request = sequence.request();
  Sequence::Cache& cache = sequence.cache;
  const int64_t start = cache.num_computed;
  const int64_t end = start + count;
  SequencePlan plan;
  ScheduledRows rows{
      .sequence_id = sequence.id(), .sequence = &sequence, .start = start, .count = count};
  plan.sequence_id = sequence.id();
  plan.start = static_cast<int32_t>(start);
  plan.num_prompt_tokens =
      static_cast<int32_t>(std::clamp<int64_t>(sequence.num_prompt() - start, 0, count));
  plan.tokens.reserve(count);
  for (int64_t i = start; i < end; ++i) plan.tokens.push_back(sequence.TokenAt(i));
  plan.block_table.assign(cache.blocks.begin(), cache.blocks.begin() + BlocksFor(end));
  plan.state_slot = cache.state_slot;
  plan.load_slot = std::exchange(cache.load_slot, -1);
  if (const int64_t save = NextSave(sequence); save > 0 && save == end) {
    plan.save_slot = *blocks_.AcquireSlot();
    draft.saved.emplace_back(sequence.prompt_hashes()[save / kGridTokens - 1], plan.save_slot);
  }

  if (end == sequence.num_known() && sequence.num_known() < sequence.max_known()) {
    rows.draw_token = plan.draw_token = true;
    plan.draw = sequence.Draw();
    plan.num_top_logprobs = request.num_top_logprobs;
  }
  // Only what has not arrived yet is asked for: a replay delivers nothing twice.
  const int64_t first_score = std::max(start, sequence.num_scores);
  const int64_t last_score = std::min(end, sequence.num_scores_wanted());
  if (first_score < last_score) {
    rows.num_scored = last_score - first_score;
    plan.targets.assign(count, -1);
    for (int64_t i = first_score; i < last_score; ++i) {
      plan.targets[i - start] = sequence.TokenAt(i + 1);
    }
    plan.num_top_logprobs = std::max(plan.num_top_logprobs, request.num_prompt_logprobs);
  }
  if (request.return_logits && sequence.num_logit_rows < end) {
    plan.return_logits = true;
    rows.first_logit_row = std::max(start, sequence.num_logit_rows);
  }

  sequence.in_flight = true;
  sequence.last_step = draft.plan.step;
  cache.num_in_flight = count;
  draft.budget -= count;
  draft.plan.sequences.push_back(std::move(plan));
  draft.record.rows.push_back(rows);
}

std::vector<ScheduledRows> Scheduler::FinishStep(uint64_t step) {
  if (in_flight_.empty() || in_flight_.front().step != step) return {};
  std::vector<ScheduledRows> finished = std::move(in_flight_.front().rows);
  in_flight_.pop_front();
  for (const ScheduledRows& rows : finished) {
    if (rows.sequence == nullptr) continue;
    rows.sequence->in_flight = false;
    rows.sequence->cache.num_computed += std::exchange(rows.sequence->cache.num_in_flight, 0);
  }
  return finished;
}

bool Scheduler::EnsureBlocks(const Draft& draft, Sequence& sequence) {
  std::vector<int32_t>& blocks = sequence.cache.blocks;
  const int64_t missing = BlocksFor(sequence.num_known()) - static_cast<int64_t>(blocks.size());
  if (missing <= 0) return true;
  while (blocks_.num_free_blocks() < missing) {
    Sequence* victim = nullptr;
    for (auto it = running_.rbegin(); it != running_.rend() && it->first > sequence.id(); ++it) {
      if (it->second->last_step != draft.plan.step) {
        victim = it->second;
        break;
      }
    }
    if (victim == nullptr) return false;
    Preempt(*victim);
  }
  const std::vector<int32_t> more = *blocks_.Allocate(missing);
  blocks.insert(blocks.end(), more.begin(), more.end());
  return true;
}

bool Scheduler::AcquireCaches(Sequence& sequence, const Prefix& prefix) {
  // A hundredth stays free for those that run, so that one admitted is not preempted at their next
  // block.
  const int64_t reserve = running_.empty() ? 0 : blocks_.num_blocks() / 100;
  if (blocks_.num_slots() > 0 && blocks_.num_free_slots() == 0) return false;
  const int64_t missing =
      BlocksFor(sequence.num_known()) - static_cast<int64_t>(prefix.blocks.size());
  for (const int32_t block : prefix.blocks) blocks_.Share(block);
  if (blocks_.num_free_blocks() < missing + reserve) {
    blocks_.Release(prefix.blocks);
    return false;
  }
  sequence.cache.blocks = prefix.blocks;
  const std::vector<int32_t> more = *blocks_.Allocate(missing);
  sequence.cache.blocks.insert(sequence.cache.blocks.end(), more.begin(), more.end());
  if (blocks_.num_slots() > 0) {
    if (prefix.slot >= 0) blocks_.TouchState(prefix.slot);
    sequence.cache.state_slot = *blocks_.AcquireSlot();
    // With no other slot left the saved state itself becomes the sequence's.
    if (prefix.slot != sequence.cache.state_slot) sequence.cache.load_slot = prefix.slot;
  }
  if (sequence.num_generated() == 0) sequence.num_prompt_cached = prefix.num_tokens();
  if (options_.cache_prefixes) num_prefix_queries_ += sequence.num_prompt();
  num_prefix_hits_ += prefix.num_tokens();
  return true;
}

void Scheduler::ReleaseCaches(Sequence& sequence) {
  blocks_.Release(sequence.cache.blocks);
  if (sequence.cache.state_slot >= 0) blocks_.ReleaseSlot(sequence.cache.state_slot);
  sequence.cache = {};
}

void Scheduler::Preempt(Sequence& sequence) {
  ReleaseCaches(sequence);
  running_.erase(sequence.id());
  waiting_.emplace(sequence.id(), &sequence);
  ++num_preemptions_;
}

std::vector<Sequence*> Scheduler::Expired(absl::Time now) const {
  std::vector<Sequence*> expired;
  for (const auto& [deadline, id] : deadlines_) {
    if (deadline > now) break;
    const auto running = running_.find(id);
    expired.push_back(running != running_.end() ? running->second : waiting_.at(id));
  }
  return expired;
}

absl::Time Scheduler::NextDeadline() const {
  return deadlines_.empty() ? absl::InfiniteFuture() : deadlines_.begin()->first;
}

}  // namespace plumbline
