// Head: from the last stage's residual stream to tokens: final norm of the rows that need it, vocabulary-parallel logits,
// penalties, the draw, log-probabilities. Rows are taken a bounded number at a time, so that logits never need more
// memory than kHeadRows rows of the vocabulary, however long a prompt is scored.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "parallel/communicator.h"
#include "parallel/model_config.h"
#include "parallel/step_plan.h"
#include "worker/model/context.h"
#include "worker/model/weight_loader.h"

namespace plumbline {

inline constexpr int64_t kHeadRows = 64;

class Head {
 public:
  static absl::StatusOr<Head> Load(const ModelConfig& config, const ShardPlan& plan, Device& device,
                                   DType act, WeightLoader& loader);

  // Fills in the results of the plan's sequences from h [R, D]: the wanted rows (batch.h), all partials added. Every
  // rank of the stage takes part; only tp index 0 gets results, the others get an empty list.
  absl::StatusOr<std::vector<SequenceResult>> Forward(const Context& context, Communicator& tp_group,
                                                      const StepPlan& plan, Tensor h);

  static int64_t BufferBytes(const ModelConfig& config, const ShardPlan& plan, DType act);

 private:
  // One row whose logits are wanted.
  struct WantedRow {
    size_t sequence = 0;         // of the plan
    bool draw = false;           // draw a token here
    int32_t target = -1;         // score this token here
    bool keep_logits = false;
  };
  static std::vector<WantedRow> WantedRows(const StepPlan& plan);

  // Of rows [first, first + count) of h.
  absl::StatusOr<Tensor> LogitsOf(const Context& context, Communicator& tp_group, Tensor h, int64_t first,
                                  int64_t count);
  void KeepLogits(const Context& context, const std::vector<WantedRow>& rows, Tensor logits,
                  std::vector<SequenceResult>& results) const;
  void DrawTokens(const Context& context, const StepPlan& plan, const std::vector<WantedRow>& rows,
                  Tensor logits, std::vector<SequenceResult>& results);
  void ScoreTokens(const Context& context, const StepPlan& plan, const std::vector<WantedRow>& rows,
                   Tensor logits, std::vector<SequenceResult>& results);

  int64_t vocab_ = 0;
  int64_t hidden_ = 0;
  float norm_offset_ = 0;
  float eps_ = 0;
  Buffer norm_;             // [D] f32
  PackedLinear head_;       // [local vocabulary rows, D]
  Buffer rows_;             // [kHeadRows] i32
  Buffer normed_;           // [kHeadRows, D] act
  Buffer local_logits_;     // [kHeadRows, local rows] f32
  Buffer gathered_logits_;  // [tp, kHeadRows, local rows] f32; empty at tp 1
  Buffer logits_;           // [kHeadRows, V] f32
  Buffer drawn_logits_;     // [kHeadRows, V] f32: the rows to draw from, with penalties
};

}  // namespace plumbline
