// Speed: what a step costs a rank in bytes and FLOPs, and from these and a device's rates how long it should take. Pure
// arithmetic, like the planner; `plan` prints it beside what fits.
#pragma once

#include <cstdint>

#include "parallel/shard_plan.h"

namespace plumbline {

// A step of equal sequences.
struct StepShape {
  int64_t num_sequences = 1;
  int64_t rows = 1;       // of each sequence
  int64_t context = 0;    // tokens of each in the caches before
  bool prompt = false;    // role of the rows
};

// What the ranks of one stage have to do each; activations, which stay in caches, are left out.
struct StepCost {
  double weight_bytes = 0;    // of linears
  double linear_flops = 0;
  double cache_bytes = 0;     // keys and values read, recurrent states read and written
  double attention_flops = 0;
  double delta_net_flops = 0; // convolution and delta rule
  double generated_rows = 0;  // counted in each layer's mixer
  double exchange_bytes = 0;  // that a rank sends to the others of its stage
  int num_exchanges = 0;      // one after the other
};
StepCost CostOfStep(const ModelConfig& config, const ShardPlan& plan, int stage, DType act, const StepShape& step);

// What a device reaches in our ops: a share of what its maker or a measurement says.
struct DeviceSpeed {
  double bytes_per_second = 0;
  double linear_flops_per_second = 0;    // many rows
  double attention_flops_per_second = 0;
  double delta_net_flops_per_second = 0;
  double generated_row_seconds = 0;      // of one such row in a mixer, beside bytes and FLOPs
  double link_bytes_per_second = 0;      // from a rank to the others of its stage
  double exchange_seconds = 0;           // of a small exchange between the ranks of a stage
};

// From the first stage to the last, nothing else under way.
double StepSeconds(const ModelConfig& config, const ShardPlan& plan, DType act, const DeviceSpeed& device,
                   const StepShape& step);

}  // namespace plumbline
