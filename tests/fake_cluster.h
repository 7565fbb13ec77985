// FakeCluster: stands for the ranks in tests of scheduler and engine. Its caches hold the history
// of tokens that step plans wrote, and its "model" draws a hash of the history it finds there; so a
// wrong block, slot, position or role changes the output, and most are named as well.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "coordinator/engine/engine.h"
#include "coordinator/engine/step_runner.h"
#include "parallel/step_plan.h"

namespace plumbline {

inline constexpr int32_t kFakeVocab = 97;

struct FakeToken {
  int32_t token = -1;
  bool generated = false;
  bool operator==(const FakeToken&) const = default;
};

inline uint64_t MixHash(uint64_t hash, uint64_t value) {  // SplitMix64's finalizer
  uint64_t x = hash * 0x9e3779b97f4a7c15 + value + 1;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

inline constexpr uint64_t kEmptyHistory = 1;

inline uint64_t ExtendHistory(uint64_t hash, const FakeToken& token) {
  return MixHash(hash, static_cast<uint64_t>(token.token) * 2 + token.generated);
}

inline uint64_t HashHistory(const std::vector<FakeToken>& history, size_t length) {
  uint64_t hash = kEmptyHistory;
  for (size_t i = 0; i < length; ++i) hash = ExtendHistory(hash, history[i]);
  return hash;
}

inline int32_t FakeDraw(uint64_t history_hash, const DrawPlan& draw) {
  uint64_t hash = MixHash(history_hash, draw.seed);
  for (const DrawPlan::Entry& entry : draw.entries) {
    hash = MixHash(hash, static_cast<uint64_t>(entry.token));
    hash = MixHash(hash, static_cast<uint64_t>(entry.count) * 2 + entry.seen);
    hash = MixHash(hash, static_cast<uint64_t>(entry.bias * 1024));
  }
  return static_cast<int32_t>(hash % kFakeVocab);
}

inline float FakeLogprob(uint64_t history_hash, int32_t token) {
  return -static_cast<float>(MixHash(history_hash, token) % 1000000) / 1024;
}

inline TokenLogprob MakeFakeLogprob(uint64_t history_hash, int32_t token, int32_t num_top) {
  TokenLogprob logprob{.token = token, .logprob = FakeLogprob(history_hash, token), .rank = 1};
  for (int32_t i = 0; i < num_top; ++i) {
    logprob.top_tokens.push_back(i);
    logprob.top_logprobs.push_back(FakeLogprob(history_hash, i));
  }
  return logprob;
}

// What the fake's model says to a request that nothing disturbs: a loop over its tokens, without
// steps or caches.
struct FakeAnswer {
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;         // of tokens
  std::vector<float> prompt_logprobs;  // of prompt[1..]
  std::string logits;                  // of every fed token
};
inline FakeAnswer Undisturbed(const GenerationRequest& request, int64_t num_tokens) {
  FakeAnswer answer;
  std::vector<FakeToken> history;
  for (const int32_t token : request.prompt) history.push_back({token, false});
  const SamplingParams& sampling = request.sampling;
  const bool counts = sampling.repetition_penalty != 1 || sampling.presence_penalty != 0 ||
                      sampling.frequency_penalty != 0;
  for (int64_t n = 0; n < num_tokens; ++n) {
    std::map<int32_t, DrawPlan::Entry> entries;
    for (const auto& [token, bias] : sampling.logit_bias) entries[token].bias = bias;
    for (const FakeToken& known : history) {
      if (!counts && !entries.contains(known.token)) continue;
      entries[known.token].seen = true;
      entries[known.token].count += known.generated;
    }
    DrawPlan draw{.seed = sampling.seed};
    for (auto& [token, entry] : entries) {
      entry.token = token;
      draw.entries.push_back(entry);
    }
    const uint64_t hash = HashHistory(history, history.size());
    const int32_t token = FakeDraw(hash, draw);
    answer.tokens.push_back(token);
    answer.logprobs.push_back(FakeLogprob(hash, token));
    history.push_back({token, true});
  }
  for (size_t i = 1; i < request.prompt.size(); ++i) {
    answer.prompt_logprobs.push_back(FakeLogprob(HashHistory(history, i), request.prompt[i]));
  }
  const size_t num_fed = std::max(request.prompt.size(), history.size() - (num_tokens > 0 ? 1 : 0));
  for (size_t i = 1; request.return_logits && i <= num_fed; ++i) {
    std::vector<float> row(kFakeVocab, FakeLogprob(HashHistory(history, i), 0));
    answer.logits.append(reinterpret_cast<const char*>(row.data()), row.size() * sizeof(float));
  }
  return answer;
}

class FakeCluster {
 public:
  explicit FakeCluster(const ClusterCapacity& capacity)
      : capacity_(capacity),
        blocks_(capacity.num_blocks * kGridTokens),
        slots_(capacity.num_state_slots) {}

  // Runs one step; what is wrong with the plan is added to problems().
  StepResult Run(const StepPlan& plan) {
    StepResult result{.epoch = plan.epoch, .step = plan.step};
    if (plan.sequences.empty()) Complain("empty step");
    if (plan.num_tokens() > capacity_.max_step_tokens) Complain("more tokens than a step holds");
    CheckSharing(plan);
    for (const SequencePlan& sequence : plan.sequences) {
      if (sequence.load_slot >= 0 && CheckShape(sequence)) {
        slots_[sequence.state_slot] = slots_[sequence.load_slot];
        ++num_loads_;
      }
    }
    for (const SequencePlan& sequence : plan.sequences) {
      result.sequences.push_back(RunSequence(sequence));
    }
    for (const SequencePlan& sequence : plan.sequences) {
      if (sequence.save_slot >= 0 && CheckShape(sequence)) {
        slots_[sequence.save_slot] = slots_[sequence.state_slot];
      }
    }
    return result;
  }
  int num_loads() const { return num_loads_; }

  const std::vector<std::string>& problems() const { return problems_; }

 private:
  struct Cell {
    FakeToken token;
    int32_t position = -1;
    uint64_t history = 0;  // up to the token: keys and values depend on all before it
  };

  void Complain(std::string problem) {
    if (problems_.size() < 20) problems_.push_back(std::move(problem));
  }

  // Blocks that a step reads may be shared; those it writes, and slots, have one owner.
  void CheckSharing(const StepPlan& plan) {
    std::map<int32_t, int> tables_with;
    std::set<int32_t> step_slots;
    std::set<uint64_t> step_ids;
    for (const SequencePlan& sequence : plan.sequences) {
      if (!step_ids.insert(sequence.sequence_id).second) Complain("sequence twice in a step");
      for (const int32_t block : sequence.block_table) ++tables_with[block];
      for (const int32_t slot : {sequence.state_slot, sequence.save_slot}) {
        if (slot >= 0 && !step_slots.insert(slot).second) Complain("slot shared in a step");
      }
    }
    for (const SequencePlan& sequence : plan.sequences) {
      for (size_t i = sequence.start / kGridTokens; i < sequence.block_table.size(); ++i) {
        if (tables_with[sequence.block_table[i]] != 1) Complain("written block shared in a step");
      }
    }
  }

  bool CheckShape(const SequencePlan& plan) {
    const int64_t count = static_cast<int64_t>(plan.tokens.size());
    const int64_t end = plan.start + count;
    const size_t num_problems = problems_.size();
    if (count == 0) Complain("no tokens");
    if (plan.num_prompt_tokens < 0 || plan.num_prompt_tokens > count) Complain("role count");
    if (plan.num_prompt_tokens > 0 && plan.start % kGridTokens != 0)
      Complain("prompt off the grid");
    if (static_cast<int64_t>(plan.block_table.size()) != (end + kGridTokens - 1) / kGridTokens) {
      Complain("length of block table");
    }
    for (const int32_t block : plan.block_table) {
      if (block < 0 || block >= capacity_.num_blocks) Complain("block out of range");
    }
    if (capacity_.num_state_slots == 0
            ? plan.state_slot != -1
            : plan.state_slot < 0 || plan.state_slot >= capacity_.num_state_slots) {
      Complain("slot out of range");
    }
    for (const int32_t slot : {plan.load_slot, plan.save_slot}) {
      if (slot < -1 || slot >= capacity_.num_state_slots) Complain("copied slot out of range");
      if (slot >= 0 && slot == plan.state_slot) Complain("slot copied to itself");
    }
    if (plan.load_slot >= 0 && (plan.start == 0 || plan.start % kGridTokens != 0)) {
      Complain("load off the grid");
    }
    if (plan.save_slot >= 0 && (end % kGridTokens != 0 || plan.num_prompt_tokens != count)) {
      Complain("save off the grid or behind generated tokens");
    }
    if (!plan.targets.empty() && plan.targets.size() != plan.tokens.size()) Complain("targets");
    return problems_.size() == num_problems;
  }

  SequenceResult RunSequence(const SequencePlan& plan) {
    SequenceResult result{.sequence_id = plan.sequence_id};
    if (!CheckShape(plan)) return result;
    const auto cell = [&](int64_t position) -> Cell& {
      return blocks_[plan.block_table[position / kGridTokens] * kGridTokens +
                     position % kGridTokens];
    };
    std::vector<FakeToken> history;
    uint64_t history_hash = kEmptyHistory;
    for (int32_t i = 0; i < plan.start; ++i) {
      if (cell(i).position != i) Complain("cache holds another position");
      history.push_back(cell(i).token);
      history_hash = ExtendHistory(history_hash, history.back());
      if (cell(i).history != history_hash) Complain("cache holds another beginning's token");
    }
    if (plan.num_prompt_tokens > 0 && !history.empty() && history.back().generated) {
      Complain("prompt after generated tokens");
    }
    if (plan.state_slot >= 0) {
      if (plan.start == 0) slots_[plan.state_slot].clear();
      if (slots_[plan.state_slot] != history) Complain("state is not the sequence's");
    }
    for (size_t i = 0; i < plan.tokens.size(); ++i) {
      const int32_t position = plan.start + static_cast<int32_t>(i);
      history.push_back({plan.tokens[i], static_cast<int32_t>(i) >= plan.num_prompt_tokens});
      history_hash = ExtendHistory(history_hash, history.back());
      cell(position) = {history.back(), position, history_hash};
      if (plan.targets.empty() && !plan.return_logits) continue;
      const uint64_t hash = history_hash;
      if (!plan.targets.empty() && plan.targets[i] >= 0) {
        result.scored.push_back(MakeFakeLogprob(hash, plan.targets[i], plan.num_top_logprobs));
      }
      if (plan.return_logits) {
        std::vector<float> row(kFakeVocab, FakeLogprob(hash, 0));
        result.logits.append(reinterpret_cast<const char*>(row.data()), row.size() * sizeof(float));
      }
    }
    if (plan.state_slot >= 0) slots_[plan.state_slot] = history;
    if (plan.draw_token) {
      const uint64_t hash = HashHistory(history, history.size());
      result.token = FakeDraw(hash, plan.draw);
      if (plan.num_top_logprobs >= 0) {
        result.drawn.push_back(MakeFakeLogprob(hash, result.token, plan.num_top_logprobs));
      }
    }
    return result;
  }

  const ClusterCapacity capacity_;
  std::vector<Cell> blocks_;
  std::vector<std::vector<FakeToken>> slots_;
  std::vector<std::string> problems_;
  int num_loads_ = 0;
};

}  // namespace plumbline
