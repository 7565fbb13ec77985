// Batch: one StepPlan as the arrays that ops read, on the device.
#pragma once

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

struct Batch {
  int64_t num_rows = 0;
  Tensor tokens;     // [T] i32
  Tensor positions;  // [T] i32
  Tensor kv_slots;   // [T] i32: block * kBlockTokens + offset
  Tensor cos;        // [T, rotary_dim / 2] f32
  Tensor sin;        // [T, rotary_dim / 2] f32
  SequenceRows sequences;
  Tensor wanted_rows;  // [R] i32: rows whose logits the plan wants, ascending
};

// INVALID_ARGUMENT naming sequence and field when a plan does not fit the limits or contradicts itself.
absl::Status CheckPlan(const StepPlan& plan, const BatchLimits& limits);

class BatchBuilder {
 public:
  BatchBuilder(Device& device, const BatchLimits& limits, int64_t rotary_dim);

  // REQUIRES: CheckPlan passed. The batch's arrays are valid until the next Build. cos and sin are left to RopeTable.
  Batch Build(const StepPlan& plan);

 private:
  Tensor UploadInts(Buffer& buffer, const std::vector<int32_t>& values, Shape shape);

  Device& device_;
  int64_t rotary_dim_;
  Buffer tokens_, positions_, kv_slots_, wanted_rows_, cos_, sin_;
  Buffer row_begin_, start_, num_prompt_rows_, block_table_, state_slot_;
  int64_t max_table_ints_;
};

}  // namespace plumbline
