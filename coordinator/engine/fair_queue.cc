#include "coordinator/engine/fair_queue.h"

#include <algorithm>
#include <limits>
#include <tuple>

#include "kernels/check.h"

namespace plumbline {
namespace {

constexpr int64_t kVirtualTimePerToken = 1'000'000;  // a share of 1000 still counts exactly

std::pair<int64_t, int64_t> KeyOf(const RequestOwner& owner) { return {-owner.priority, owner.key_id}; }

}  // namespace

void FairQueue::Enter(Sequence& sequence, uint64_t step) {
  const RequestOwner& owner = sequence.request().owner;
  PL_CHECK(owner.share >= 1);
  Flow& flow = flows_[KeyOf(owner)];
  flow.owner = owner;
  if (!flow.is_present()) {
    flow.virtual_time = std::max(flow.virtual_time, LeastOf(owner.priority));
    // Before those of the latest step, behind those that have waited longer: new keys cannot starve anybody.
    flow.last_turn = step < 2 ? 0 : step - 2;
    ++num_present_;
  }
  flow.waiting.emplace(sequence.id(), &sequence);
  sequence.flow = &flow;
}

void FairQueue::Leave(Sequence& sequence) {
  Flow& flow = *sequence.flow;
  if (flow.waiting.erase(sequence.id()) == 0) --flow.num_running;
  sequence.flow = nullptr;
  if (flow.is_present()) return;
  --num_present_;
  Forget(flow.owner.priority);
}

void FairQueue::Run(Sequence& sequence) {
  PL_CHECK(sequence.flow->waiting.erase(sequence.id()) == 1);
  ++sequence.flow->num_running;
}

void FairQueue::Wait(Sequence& sequence) {
  --sequence.flow->num_running;
  sequence.flow->waiting.emplace(sequence.id(), &sequence);
}

void FairQueue::Charge(Flow& flow, int64_t num_tokens, uint64_t step) {
  flow.virtual_time += num_tokens * kVirtualTimePerToken / flow.owner.share;
  flow.last_turn = step;
}

bool FairQueue::Before(const Flow& a, const Flow& b) {
  return std::make_tuple(-a.owner.priority, a.virtual_time, a.last_turn, a.owner.key_id) <
         std::make_tuple(-b.owner.priority, b.virtual_time, b.last_turn, b.owner.key_id);
}

bool FairQueue::MustYield(const Holder& giver, const Holder& taker) {
  const RequestOwner& from = giver.flow.owner;
  const RequestOwner& to = taker.flow.owner;
  if (&giver.flow == &taker.flow || giver.num_running == 0) return false;
  if (from.priority != to.priority) return from.priority < to.priority;
  if (giver.num_running < 2) return false;
  return taker.num_running == 1 || (giver.num_running - 1) * to.share >= taker.num_running * from.share;
}

int64_t FairQueue::LeastOf(int64_t priority) const {
  int64_t least = -1;
  auto it = flows_.lower_bound({-priority, std::numeric_limits<int64_t>::min()});
  for (; it != flows_.end() && it->first.first == -priority; ++it) {
    const Flow& flow = it->second;
    if (flow.is_present() && (least < 0 || flow.virtual_time < least)) least = flow.virtual_time;
  }
  return least;
}

void FairQueue::Forget(int64_t priority) {
  const int64_t least = LeastOf(priority);
  std::erase_if(flows_, [&](const auto& entry) {
    const Flow& flow = entry.second;
    return flow.owner.priority == priority && !flow.is_present() && (least < 0 || flow.virtual_time <= least);
  });
}

}  // namespace plumbline
