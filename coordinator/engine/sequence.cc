#include "coordinator/engine/sequence.h"

#include <algorithm>

namespace plumbline {

Sequence::Sequence(uint64_t id, GenerationRequest request, int64_t max_context_tokens)
    : id_(id),
      request_(std::move(request)),
      max_known_(num_prompt() + std::min(request_.max_tokens, max_context_tokens - num_prompt())) {
  const SamplingParams& sampling = request_.sampling;
  counts_tokens_ = sampling.repetition_penalty != 1 || sampling.presence_penalty != 0 ||
                   sampling.frequency_penalty != 0;
  for (const auto& [token, bias] : sampling.logit_bias) entries_[token].bias = bias;
  for (const int32_t token : request_.prompt) {
    if (counts_tokens_) {
      entries_[token].seen = true;
    } else if (auto found = entries_.find(token); found != entries_.end()) {
      found->second.seen = true;
    }
  }
}

int64_t Sequence::max_cached() const { return std::max(num_prompt(), max_known_ - 1); }

int32_t Sequence::TokenAt(int64_t position) const {
  return position < num_prompt() ? request_.prompt[position] : generated_[position - num_prompt()];
}

void Sequence::Append(int32_t token) {
  generated_.push_back(token);
  auto found = entries_.find(token);
  if (found == entries_.end()) {
    if (!counts_tokens_) return;
    found = entries_.emplace(token, Count{}).first;
  }
  ++found->second.generated;
  found->second.seen = true;
}

const std::vector<BlockHash>& Sequence::prompt_hashes() {
  if (prompt_hashes_.empty()) prompt_hashes_ = HashPromptBlocks(request_.prompt, /*variant=*/"");
  return prompt_hashes_;
}

DrawPlan Sequence::Draw() const {
  const SamplingParams& sampling = request_.sampling;
  DrawPlan draw{.temperature = sampling.temperature,
                .top_k = sampling.top_k,
                .top_p = sampling.top_p,
                .min_p = sampling.min_p,
                .seed = sampling.seed,
                .repetition_penalty = sampling.repetition_penalty,
                .presence_penalty = sampling.presence_penalty,
                .frequency_penalty = sampling.frequency_penalty};
  draw.entries.reserve(entries_.size());
  for (const auto& [token, count] : entries_) {
    draw.entries.push_back(
        {.token = token, .count = count.generated, .seen = count.seen, .bias = count.bias});
  }
  return draw;
}

}  // namespace plumbline
