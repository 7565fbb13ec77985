// FairQueue: whose turn it is. The sequences of one key and priority are a flow. A higher priority goes first, always.
// Within a priority it is weighted fair queueing: a flow's virtual time grows by what is computed for it over its share,
// and the flow with the least goes first. One that comes joins at the least of those present, or at its own when that
// is more: who was away has no credit, who leaves and comes back keeps its debt. Replays and cached prefixes cost
// nothing. Pure and deterministic; not thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <utility>

#include "absl/container/btree_map.h"
#include "coordinator/engine/request_owner.h"
#include "coordinator/engine/sequence.h"

namespace plumbline {

struct Flow {
  RequestOwner owner;        // of its latest request
  int64_t virtual_time = 0;  // millionths of a token per share
  uint64_t last_turn = 0;    // the latest step with rows of its
  absl::btree_map<uint64_t, Sequence*> waiting;  // by id: in order of arrival
  int64_t num_running = 0;

  bool is_present() const { return num_running > 0 || !waiting.empty(); }
};

class FairQueue {
 public:
  // The sequence begins to wait; `step` is the next one. Sets Sequence::flow, which stays good until Leave.
  void Enter(Sequence& sequence, uint64_t step);
  void Leave(Sequence& sequence);
  void Run(Sequence& sequence);   // it waited
  void Wait(Sequence& sequence);  // it ran
  // So many tokens of the flow are part of `step`.
  void Charge(Flow& flow, int64_t num_tokens, uint64_t step);

  // Whether `a` goes before `b`. Among equals the one that had its turn longer ago does.
  static bool Before(const Flow& a, const Flow& b);
  // Whether `giver`, with so many running, must let one go so that `taker` has so many. A lower priority must; an
  // equal one keeps its last, and beyond a taker's first only gives what leaves it no worse off than the taker, so
  // that what was given is never taken back.
  struct Holder {
    const Flow& flow;
    int64_t num_running;
  };
  static bool MustYield(const Holder& giver, const Holder& taker);

  // By priority, the highest first, then by key; also flows that are away and in debt.
  using Flows = std::map<std::pair<int64_t, int64_t>, Flow>;
  Flows& flows() { return flows_; }
  const Flows& flows() const { return flows_; }
  int64_t num_present() const { return num_present_; }

 private:
  // The least virtual time of the flows present of a priority; -1 when there is none.
  int64_t LeastOf(int64_t priority) const;
  // Drops flows of the priority that are away and have no debt.
  void Forget(int64_t priority);

  Flows flows_;
  int64_t num_present_ = 0;
};

}  // namespace plumbline
