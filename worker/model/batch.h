// Batch: one StepPlan as the arrays that ops read, on the device.
#pragma once

#include <span>
#include <vector>

#include "absl/status/status.h"
#include "kernels/device.h"
#include "kernels/ops.h"
#include "parallel/step_plan.h"

namespace plumbline {

// The largest plan that a stage takes; its arrays are laid out for that.
struct BatchLimits {
  int64_t max_step_tokens = 0;
  int64_t max_sequences = 0;   // of one step
  int64_t num_blocks = 0;      // KV blocks of the cache
  int64_t num_state_slots = 0;
  int64_t max_positions = 0;
  int64_t vocab = 0;
};

// Rows in the order of their sequences, and where they stand in them.
struct BatchRows {
  int64_t count = 0;       // T
  Tensor positions;        // [T] i32
  Tensor cos;              // [T, rotary_dim / 2] f32
  Tensor sin;              // [T, rotary_dim / 2] f32
  SequenceRows sequences;  // a run of adjoining rows each
};

struct Batch {
  Tensor tokens;       // [T] i32
  Tensor kv_slots;     // [T] i32: block * kBlockTokens + offset
  BatchRows all;       // T rows: a sequence of the plan is one run
  Tensor wanted_rows;  // [R] i32: rows whose logits the plan wants, ascending
  // These R rows by themselves, for attention: a run for every stretch of a sequence without gaps. The same tensors as `all`
  // when R is T.
  BatchRows wanted;
};

// INVALID_ARGUMENT naming sequence and field when a plan does not fit the limits or contradicts itself.
absl::Status CheckPlan(const StepPlan& plan, const BatchLimits& limits);

class BatchBuilder {
 public:
  BatchBuilder(Device& device, const BatchLimits& limits, int64_t rotary_dim);

  // REQUIRES: CheckPlan passed. The batch's arrays are valid until the next Build. cos and sin are left to RopeTable.
  Batch Build(const StepPlan& plan);

 private:
  // Rows [first, first + count) of a sequence's part of the step.
  struct Run {
    const SequencePlan* sequence;
    int32_t first, count;
  };
  // Memory of one BatchRows.
  struct RowBuffers {
    Buffer positions, cos, sin;
    Buffer row_begin, start, num_prompt_rows, block_table, state_slot;
  };
  RowBuffers Allocate(const BatchLimits& limits, int64_t max_runs);
  BatchRows Upload(RowBuffers& buffers, std::span<const Run> runs);
  Tensor UploadInts(Buffer& buffer, const std::vector<int32_t>& values, Shape shape);

  Device& device_;
  int64_t rotary_dim_;
  Buffer tokens_, kv_slots_, wanted_rows_;
  RowBuffers all_, wanted_;
};

}  // namespace plumbline
