// Attention: which kernels take a step. Sequences with at most short_tokens rows are split over their segments
// (attention_split.cu), the others walked (attention_walk.cu); which is known on the device only, and bits do not depend on
// it (attention_tile.cuh).
#include <algorithm>

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/types.cuh"

namespace plumbline {

using namespace cuda;

namespace {

constexpr int64_t kMaxPartialFloats = int64_t{64} << 20;  // 256 MB

}  // namespace

void CudaOps::DoAttention(const AttentionArgs& args) {
  const int64_t head_dim = args.q.dim(2), group = args.q.dim(1) / args.k_cache.dim(1);
  VisitFloat(args.q.dtype(), [&]<typename T>() {
    const AttentionInput<T> input = {.out = Data<T>(args.out),
                                     .out_stride = args.out.row_stride(),
                                     .q = Data<T>(args.q),
                                     .k_cache = Data<T>(args.k_cache),
                                     .v_cache = Data<T>(args.v_cache),
                                     .gates = args.gated ? args.qkv.as<float>() + head_dim : nullptr,
                                     .gate_stride = args.gated ? args.qkv.dim(1) : 0,
                                     .row_begin = args.sequences.row_begin.as<int32_t>(),
                                     .start = args.sequences.start.as<int32_t>(),
                                     .block_table = args.sequences.block_table.as<int32_t>(),
                                     .max_blocks = args.sequences.block_table.dim(1),
                                     .num_rows = static_cast<int>(args.q.dim(0)),
                                     .num_sequences = static_cast<int>(args.sequences.num_sequences()),
                                     .heads = static_cast<int>(args.q.dim(1)),
                                     .kv_heads = static_cast<int>(args.k_cache.dim(1)),
                                     .head_dim = static_cast<int>(head_dim),
                                     .scale = args.scale * kLog2OfE,
                                     .short_tokens = static_cast<int>(std::max<int64_t>(1, kTileRows / group))};
    if constexpr (sizeof(T) == 2) {
      if (head_dim % 8 == 0 && head_dim <= 256) {
        const SplitPlan plan = PlanSplit(input, kMaxPartialFloats);
        if (!plan.all_short) LaunchWalkedAttention(input, device_.num_multiprocessors(), stream());
        // A single sequence is short, or it is not.
        if (plan.all_short || input.num_sequences > 1) {
          float* workspace = static_cast<float*>(workspace_.Take(plan.workspace_floats * sizeof(float)));
          LaunchSplitAttention(input, plan, workspace, stream());
        }
        return;
      }
    }
    LaunchGeneralAttention(input, stream());
  });
}

}  // namespace plumbline
