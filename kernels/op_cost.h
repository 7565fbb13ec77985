// OpCost: the least work that an op's result needs, whatever the backend: what its time is measured against.
#pragma once

#include "kernels/ops.h"

namespace plumbline {

struct OpCost {
  double bytes = 0;  // every operand read once, every result written once; of caches and tables what the rows touch
  double flops = 0;  // of matrix products, convolutions, attention and the delta rule; 2 for a multiply-add
  OpCost& operator+=(const OpCost& other) {
    bytes += other.bytes;
    flops += other.flops;
    return *this;
  }
};

// The index tensors of the arguments (sequences, chosen experts) must be in host memory.
OpCost CostOf(const PackLinearArgs& args);
OpCost CostOf(const LinearArgs& args);
OpCost CostOf(const GatedLinearArgs& args);
OpCost CostOf(const EmbedArgs& args);
OpCost CostOf(const TreeSumArgs& args);
OpCost CostOf(const ReduceAddArgs& args);
OpCost CostOf(const ReduceAddRmsNormArgs& args);
OpCost CostOf(const RmsNormRowsArgs& args);
OpCost CostOf(const RopeTableArgs& args);
OpCost CostOf(const QkNormRopeArgs& args);
OpCost CostOf(const QkvLinearArgs& args);
OpCost CostOf(const AttentionArgs& args);
OpCost CostOf(const CausalConvArgs& args);
OpCost CostOf(const GatedDeltaNetArgs& args);
OpCost CostOf(const ConvGatedDeltaNetArgs& args);
OpCost CostOf(const MoeRouteArgs& args);
OpCost CostOf(const MoeMlpArgs& args);
OpCost CostOf(const ConcatColumnsArgs& args);
OpCost CostOf(const PenaltiesArgs& args);
OpCost CostOf(const SampleArgs& args);
OpCost CostOf(const LogprobsArgs& args);

}  // namespace plumbline
