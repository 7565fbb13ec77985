// Sequence: the tokens of one request and where its caches stand. The engine appends tokens; the
// scheduler alone writes what `Cache` holds. Not thread-safe.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/container/btree_map.h"
#include "coordinator/engine/block_hash.h"
#include "coordinator/engine/engine.h"

namespace plumbline {

struct Flow;  // coordinator/engine/fair_queue.h

class Sequence {
 public:
  // What the ranks hold of this sequence.
  struct Cache {
    std::vector<int32_t> blocks;
    int32_t state_slot = -1;
    int64_t num_computed = 0;  // tokens whose step has finished
    int64_t num_in_flight =
        0;  // tokens of the step in flight; 0 again when the caches were taken away meanwhile
    int32_t load_slot = -1;  // a saved state that the first step begins with
    int64_t branch = 0;      // where this prompt leaves those known, and no state is saved; 0: nowhere
  };

  // id: also the order of arrival. max_context_tokens bounds prompt + generated; the prompt is
  // within it.
  Sequence(uint64_t id, GenerationRequest request, int64_t max_context_tokens);

  uint64_t id() const { return id_; }
  const GenerationRequest& request() const { return request_; }

  int64_t num_prompt() const { return static_cast<int64_t>(request_.prompt.size()); }
  int64_t num_generated() const { return static_cast<int64_t>(generated_.size()); }
  int64_t num_known() const { return num_prompt() + num_generated(); }
  // prompt + generated when the request has reached its limit.
  int64_t max_known() const { return max_known_; }
  // Cache positions it can ever need: the last drawn token is never fed.
  int64_t max_cached() const;
  int32_t TokenAt(int64_t position) const;
  void Append(int32_t token);
  // Of the prompt's full blocks. Made at the first call.
  const std::vector<BlockHash>& prompt_hashes();

  // How the token after the known ones is drawn.
  DrawPlan Draw() const;

  // Log-probabilities of prompt[1..]: how many are wanted, and those that have arrived. They
  // survive a replay.
  int64_t num_scores_wanted() const {
    return request_.num_prompt_logprobs < 0 ? 0 : num_prompt() - 1;
  }
  int64_t num_scores = 0;
  std::vector<TokenLogprob> scores;
  int64_t num_logit_rows = 0;  // rows of logits that have arrived
  int64_t num_prompt_cached = 0;  // prompt tokens that were not computed at the first admission

  // Scheduling state.
  Cache cache;
  Flow* flow = nullptr;    // the owner's
  int64_t num_served = 0;  // leading tokens that were charged to it
  bool in_flight = false;
  uint64_t last_step = 0;

 private:
  struct Count {
    int32_t generated = 0;
    bool seen = false;
    float bias = 0;
  };

  const uint64_t id_;
  const GenerationRequest request_;
  const int64_t max_known_;
  std::vector<int32_t> generated_;
  std::vector<BlockHash> prompt_hashes_;
  bool counts_tokens_ = false;               // a penalty is on
  absl::btree_map<int32_t, Count> entries_;  // ordered, so that equal requests give equal plans
};

}  // namespace plumbline
