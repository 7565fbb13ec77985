#include "coordinator/engine/scheduler.h"

#include <algorithm>
#include <utility>

#include "kernels/check.h"

namespace plumbline {
namespace {

constexpr int64_t kRowsTogether = 8;

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
    queue_.Wait(*sequence);
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
  queue_.Enter(*sequence, next_step_);
  waiting_.emplace(sequence->id(), sequence);
  deadlines_.emplace(sequence->request().deadline, sequence->id());
}

void Scheduler::Remove(Sequence* sequence) {
  if (sequence->flow == nullptr) return;
  if (running_.erase(sequence->id()) > 0) ReleaseCaches(*sequence);
  waiting_.erase(sequence->id());
  queue_.Leave(*sequence);
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
  ScheduleAhead(draft);
  ScheduleDecodes(draft);
  SchedulePrompts(draft);
  if (draft.plan.sequences.empty()) {
    PL_CHECK(!in_flight_.empty() || (running_.empty() && waiting_.empty()));
    return std::nullopt;
  }
  if (options_.cache_prefixes) KeepPrefixes(draft);
  ++next_step_;
  in_flight_.push_back(std::move(draft.record));
  return std::move(draft.plan);
}

int64_t Scheduler::DecodeSeats() const {
  // With stages, decodes are dealt out over the steps that can be in flight, so that no stage waits. A few rows stay
  // together: a step reads all weights whatever its rows, so that smaller steps would come no sooner.
  const int64_t stages = capacity_->pipeline_stages;
  return std::max((num_running() + stages - 1) / stages, std::min(num_running(), kRowsTogether));
}

absl::btree_map<Flow*, std::deque<Sequence*>> Scheduler::ReadyDecodes() const {
  absl::btree_map<Flow*, std::deque<Sequence*>> ready;
  for (const auto& [id, sequence] : running_) {
    if (!sequence->in_flight && IsDecode(*sequence)) ready[sequence->flow].push_back(sequence);
  }
  for (auto& [flow, sequences] : ready) {
    std::stable_sort(sequences.begin(), sequences.end(), [](const Sequence* a, const Sequence* b) {
      return a->last_step < b->last_step;
    });
  }
  return ready;
}

void Scheduler::ScheduleAhead(Draft& draft) {
  if (queue_.num_present() < 2) return;
  Sequence* const next = NextPrompt(draft);
  if (next == nullptr) return;
  int64_t num_decodes = 0;
  bool is_before_decodes = false;
  for (const auto& [flow, sequences] : ReadyDecodes()) {
    num_decodes += static_cast<int64_t>(sequences.size());
    is_before_decodes |= FairQueue::Before(*next->flow, *flow);
  }
  int64_t budget = draft.budget - std::min(num_decodes, DecodeSeats());
  const bool is_crowded = budget < kGridTokens;
  if (is_crowded && !is_before_decodes) return;
  if (is_crowded) budget = std::max<int64_t>(kGridTokens, draft.budget / 2 / kGridTokens * kGridTokens);
  if (!running_.contains(next->id())) {
    draft.admits = Admit(draft, *next, budget, Room::kYielded);
  } else if (is_crowded) {
    Plan(draft, *next, NextCount(*next, budget));
  }
}

void Scheduler::ScheduleDecodes(Draft& draft) {
  auto ready = ReadyDecodes();
  int64_t seats = DecodeSeats();
  while (!ready.empty() && seats > 0 && draft.budget > 0) {
    const auto next = std::min_element(ready.begin(), ready.end(), [](const auto& a, const auto& b) {
      return FairQueue::Before(*a.first, *b.first);
    });
    Sequence* const sequence = next->second.front();
    next->second.pop_front();
    if (next->second.empty()) ready.erase(next);
    // One further up in the list may have preempted this one; one without room waits for its turn.
    if (!running_.contains(sequence->id()) || !EnsureBlocks(draft, *sequence)) continue;
    Plan(draft, *sequence, 1);
    --seats;
  }
}

Sequence* Scheduler::NextPrompt(const Draft& draft) {
  Sequence* next = nullptr;
  const auto consider = [&next](Sequence* sequence) {
    if (next == nullptr || FairQueue::Before(*sequence->flow, *next->flow)) next = sequence;
  };
  for (const auto& [id, sequence] : running_) {
    if (!sequence->in_flight && !IsDecode(*sequence)) consider(sequence);
  }
  if (!draft.admits) return next;
  for (const auto& [key, flow] : queue_.flows()) {
    if (flow.waiting.empty()) continue;
    Sequence* const first = flow.waiting.begin()->second;
    // One in flight was preempted; what it draws is about to arrive.
    if (!first->in_flight) consider(first);
  }
  return next;
}

void Scheduler::SchedulePrompts(Draft& draft) {
  while (draft.budget > 0) {
    Sequence* const next = NextPrompt(draft);
    if (next == nullptr) return;
    if (!running_.contains(next->id())) {
      // Nobody who waits overtakes: what becomes free is for this one.
      draft.admits = Admit(draft, *next, draft.budget, Room::kFree);
      continue;
    }
    const int64_t count = NextCount(*next, draft.budget);
    if (count == 0) return;
    Plan(draft, *next, count);
  }
}

bool Scheduler::Admit(Draft& draft, Sequence& sequence, int64_t budget, Room room) {
  const Prefix prefix = FindPrefix(sequence);
  sequence.cache.num_computed = prefix.num_tokens();
  sequence.cache.branch = prefix.branch;
  const int64_t count = NextCount(sequence, budget);
  if (count == 0 || !AcquireCaches(draft, sequence, prefix, room)) {
    sequence.cache = {};
    return false;
  }
  waiting_.erase(sequence.id());
  running_.emplace(sequence.id(), &sequence);
  queue_.Run(sequence);
  Plan(draft, sequence, count);
  return true;
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

  queue_.Charge(*sequence.flow, std::max<int64_t>(0, end - std::max(start, sequence.num_served)), draft.plan.step);
  sequence.num_served = std::max(sequence.num_served, end);
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
    Sequence* const victim = VictimOf(draft, sequence);
    if (victim == nullptr) return false;
    Preempt(*victim);
  }
  const std::vector<int32_t> more = *blocks_.Allocate(missing);
  blocks.insert(blocks.end(), more.begin(), more.end());
  return true;
}

Sequence* Scheduler::VictimOf(const Draft& draft, const Sequence& sequence) const {
  const FairQueue::Holder own{*sequence.flow, sequence.flow->num_running};
  Sequence* of_own = nullptr;
  Sequence* of_others = nullptr;
  for (auto it = running_.rbegin(); it != running_.rend(); ++it) {
    Sequence* const other = it->second;
    if (other->last_step == draft.plan.step) continue;
    const FairQueue::Holder holder{*other->flow, other->flow->num_running};
    if (FairQueue::MustYield(holder, own)) return other;
    if (other->id() <= sequence.id()) continue;
    if (other->flow == sequence.flow) {
      if (of_own == nullptr) of_own = other;
    } else if (of_others == nullptr && !FairQueue::MustYield(own, holder)) {
      of_others = other;
    }
  }
  return of_own != nullptr ? of_own : of_others;
}

bool Scheduler::HasRoom(int64_t num_blocks, const std::vector<Sequence*>& preempted) const {
  const int64_t num_left = num_running() - static_cast<int64_t>(preempted.size());
  int64_t free_blocks = blocks_.num_free_blocks();
  for (const Sequence* sequence : preempted) {
    free_blocks += static_cast<int64_t>(sequence->cache.blocks.size());
  }
  // A hundredth stays free for those that run, so that one admitted is not preempted at their next
  // block.
  const int64_t reserve = num_left == 0 ? 0 : blocks_.num_blocks() / 100;
  const bool has_slot = blocks_.num_slots() == 0 || blocks_.num_free_slots() > 0 || !preempted.empty();
  return num_left < options_.max_running && has_slot && free_blocks >= num_blocks + reserve;
}

bool Scheduler::TakeRoom(const Draft& draft, const Sequence& sequence, int64_t num_blocks) {
  const FairQueue::Holder taker{*sequence.flow, sequence.flow->num_running + 1};
  absl::btree_map<const Flow*, int64_t> left;  // running ones, by flow
  for (const auto& [id, other] : running_) ++left[other->flow];
  std::vector<Sequence*> victims;
  while (!HasRoom(num_blocks, victims)) {
    Sequence* victim = nullptr;
    for (auto it = running_.rbegin(); it != running_.rend(); ++it) {
      Sequence* const other = it->second;
      const RequestOwner& owner = other->flow->owner;
      if (other->last_step == draft.plan.step ||
          std::find(victims.begin(), victims.end(), other) != victims.end() ||
          !FairQueue::MustYield({*other->flow, left[other->flow]}, taker)) {
        continue;
      }
      // Of the lowest priority, then of the flow that has most for its share, the youngest.
      if (victim == nullptr || owner.priority < victim->flow->owner.priority ||
          (owner.priority == victim->flow->owner.priority &&
           left[other->flow] * victim->flow->owner.share > left[victim->flow] * owner.share)) {
        victim = other;
      }
    }
    if (victim == nullptr) return false;
    --left[victim->flow];
    victims.push_back(victim);
  }
  for (Sequence* victim : victims) Preempt(*victim);
  return HasRoom(num_blocks, {});  // blocks that others share are not free
}

bool Scheduler::AcquireCaches(const Draft& draft, Sequence& sequence, const Prefix& prefix, Room room) {
  const int64_t missing =
      BlocksFor(sequence.num_known()) - static_cast<int64_t>(prefix.blocks.size());
  for (const int32_t block : prefix.blocks) blocks_.Share(block);
  if (!HasRoom(missing, {}) && (room == Room::kFree || !TakeRoom(draft, sequence, missing))) {
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
  queue_.Wait(sequence);
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
