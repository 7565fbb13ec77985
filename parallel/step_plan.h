// StepPlan: one forward step for every rank, complete and stateless: a worker needs no memory of earlier plans except
// cache bytes. StepResult: what the last stage sends back. Plain data; step_codec.h turns them into wire bytes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace plumbline {

// The grid of exactness.md 3.5: prompts are cut only at multiples of it. Also the tokens of a KV block.
inline constexpr int kGridTokens = 64;

// How one token is drawn: SampleArgs and PenaltiesArgs of kernels/ops.h, for one row.
struct DrawPlan {
  float temperature = 0;
  int32_t top_k = 0;
  float top_p = 1;
  float min_p = 0;
  uint64_t seed = 0;
  float repetition_penalty = 1;
  float presence_penalty = 0;
  float frequency_penalty = 0;
  // Tokens that a penalty or a bias touches; empty unless one is on.
  struct Entry {
    int32_t token = 0;
    int32_t count = 0;  // times generated
    bool seen = false;  // in prompt or output
    float bias = 0;
  };
  std::vector<Entry> entries;
};

struct SequencePlan {
  uint64_t sequence_id = 0;
  std::vector<int32_t> tokens;       // of this step, at positions start, start + 1, ...
  int32_t start = 0;
  int32_t num_prompt_tokens = 0;     // the first of `tokens` with role prompt; the rest are generated
  std::vector<int32_t> block_table;  // KV blocks of positions [0, start + tokens.size())
  int32_t state_slot = -1;           // recurrent-state slot, -1 when the model has none
  // Copies of whole recurrent states around the step: load_slot -> state_slot before it (loads in plan order, all before
  // any row is computed), state_slot -> save_slot after it. -1: none. A step that loads begins on the grid, behind
  // position 0; a step that saves ends on the grid and holds prompt tokens only.
  int32_t load_slot = -1;
  int32_t save_slot = -1;

  bool draw_token = false;           // draw one token after the last of `tokens`
  DrawPlan draw;
  // Log-probabilities wanted: of the drawn token when num_top_logprobs >= 0, with that many alternatives.
  int32_t num_top_logprobs = -1;
  // Scoring: targets[i] is the token whose log-probability is wanted after tokens[i], -1 for none. Empty or as long as
  // tokens. Alternatives as num_top_logprobs says (none when negative).
  std::vector<int32_t> targets;
  bool return_logits = false;        // f32 logits of every row, for audits

  // Whether anything is asked of the logits after tokens[i].
  bool WantsLogits(size_t i) const {
    return return_logits || (draw_token && i + 1 == tokens.size()) || (!targets.empty() && targets[i] >= 0);
  }
};

struct StepPlan {
  uint64_t epoch = 0;
  uint64_t step = 0;
  std::vector<SequencePlan> sequences;
  int64_t num_tokens() const {
    int64_t sum = 0;
    for (const SequencePlan& sequence : sequences) sum += static_cast<int64_t>(sequence.tokens.size());
    return sum;
  }
};

struct TokenLogprob {
  int32_t token = -1;
  float logprob = 0;
  int32_t rank = 0;  // 1 = most likely
  std::vector<int32_t> top_tokens;
  std::vector<float> top_logprobs;
};

struct SequenceResult {
  uint64_t sequence_id = 0;
  int32_t token = -1;                  // drawn
  std::vector<TokenLogprob> drawn;     // one entry when asked for
  std::vector<TokenLogprob> scored;    // one entry per target >= 0, in order
  std::string logits;                  // f32 [tokens, V] little endian, when asked for
};

struct StepResult {
  uint64_t epoch = 0;
  uint64_t step = 0;
  std::vector<SequenceResult> sequences;  // as in the plan
};

}  // namespace plumbline
