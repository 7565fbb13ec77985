// RopeTable, Attention.
#include <algorithm>
#include <cmath>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/sequence_kernels.h"

namespace plumbline {
void CpuOps::DoRopeTable(const RopeTableArgs& args) {
  const int64_t half = args.inv_freq.dim(0);
  pool_.ParallelFor(args.positions.dim(0), [&](int64_t t, int) {
    const float position = static_cast<float>(args.positions.as<int32_t>()[t]);
    for (int64_t i = 0; i < half; ++i) {
      const double angle = position * args.inv_freq.as<float>()[i];  // the product is rounded to f32
      args.cos.as<float>()[t * half + i] = static_cast<float>(std::cos(angle)) * args.attention_factor;
      args.sin.as<float>()[t * half + i] = static_cast<float>(std::sin(angle)) * args.attention_factor;
    }
  });
}

void CpuOps::DoAttention(const AttentionArgs& args) {
  const int64_t heads = args.q.dim(1), head_dim = args.q.dim(2), kv_heads = args.k_cache.dim(1);
  const int64_t group = heads / kv_heads, num_sequences = args.sequences.num_sequences();
  PL_CHECK(group <= kMaxAttentionRows);
  const int64_t tokens_per_task = kMaxAttentionRows / group;
  const int32_t* row_begin = args.sequences.row_begin.as<int32_t>();
  const SequenceKernels& kernels = SequenceKernelsOf(arithmetic_);
  const auto kernel = kernels.attention[ActIndex(args.q.dtype())];
  const int64_t scratch_bytes = kernels.attention_scratch_bytes(kMaxAttentionRows, static_cast<int>(head_dim));

  // [sequence]: the number of row blocks of the sequences up to and with it. Tasks: (row block, KV head).
  int64_t* block_end = shared_.Get<int64_t>(num_sequences);
  int64_t num_blocks = 0;
  for (int64_t s = 0; s < num_sequences; ++s) {
    num_blocks += (row_begin[s + 1] - row_begin[s] + tokens_per_task - 1) / tokens_per_task;
    block_end[s] = num_blocks;
  }
  pool_.ParallelFor(num_blocks * kv_heads, [&](int64_t task, int thread) {
    const int64_t block = task / kv_heads;
    const int64_t kv_head = task % kv_heads;
    const int64_t s = std::upper_bound(block_end, block_end + num_sequences, block) - block_end;
    const int64_t first = (block - (s == 0 ? 0 : block_end[s - 1])) * tokens_per_task;
    const int64_t t = row_begin[s] + first;
    const int64_t at = (t * heads + kv_head * group) * head_dim;
    const int64_t gate_stride = args.gated ? args.qkv.dim(1) : 0;
    kernel({.out = args.out.At(t, kv_head * group * head_dim),
            .out_stride = args.out.row_stride(),
            .q = At(args.q, at),
            .q_stride = heads * head_dim,
            .k_cache = At(args.k_cache, kv_head * kBlockTokens * head_dim),
            .v_cache = At(args.v_cache, kv_head * kBlockTokens * head_dim),
            .block_stride = kv_heads * kBlockTokens * head_dim,
            .blocks = args.sequences.block_table.as<int32_t>() + s * args.sequences.block_table.dim(1),
            .gate = args.gated ? args.qkv.as<float>() + t * gate_stride + (2 * kv_head * group + 1) * head_dim
                               : nullptr,
            .gate_stride = gate_stride,
            .num_tokens = static_cast<int>(std::min<int64_t>(tokens_per_task, row_begin[s + 1] - t)),
            .group = static_cast<int>(group),
            .head_dim = static_cast<int>(head_dim),
            .first_position = args.sequences.start.as<int32_t>()[s] + first,
            .scale = args.scale,
            .scratch = scratch_[thread].Get<std::byte>(scratch_bytes)});
  });
}

}  // namespace plumbline
