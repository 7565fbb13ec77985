// Attention, shared by its kernels: the arguments, which query rows a tile holds, and how segments merge.
//
// The query rows of a sequence and a KV head are its tokens times the query heads of the group, token by token. Whatever
// tile a row is in and whoever shares it, its arithmetic is: per segment of kSegmentTokens positions, the blocks of
// kBlockTokens in ascending order (attention_tile.cuh); then the segments in ascending order (Merge). Weights are powers of
// two: scores are multiplied by log2(e).
#pragma once

#include <algorithm>

#include "kernels/cuda/primitives.cuh"
#include "kernels/ops.h"

namespace plumbline::cuda {

inline constexpr float kLog2OfE = 1.44269504088896340736f;
inline constexpr int kSegmentBlocks = kSegmentTokens / kBlockTokens;
inline constexpr int kTileRows = 16;  // of one tensor core product

template <typename T>
struct AttentionInput {
  T* out;
  int64_t out_stride;
  const T* q;        // [T, heads, head_dim]
  const T* k_cache;  // [blocks, kv_heads, kBlockTokens, head_dim]
  const T* v_cache;
  const float* gates;   // the first gate of row 0, or null; of head h 2 h head_dim further
  int64_t gate_stride;  // from row to row
  const int32_t* row_begin;
  const int32_t* start;
  const int32_t* block_table;
  int64_t max_blocks;
  int num_rows, num_sequences, heads, kv_heads, head_dim;
  float scale;       // times log2(e)
  int short_tokens;  // sequences with so few rows are split over segments, the others are walked

  PLUMBLINE_DEVICE int group() const { return heads / kv_heads; }
  PLUMBLINE_DEVICE int num_tokens(int sequence) const { return row_begin[sequence + 1] - row_begin[sequence]; }
};

// The sequence that owns row t. Whole warps call it.
template <typename T>
PLUMBLINE_DEVICE int SequenceOf(const AttentionInput<T>& input, int t) {
  int sequence = 0;
  for (int first = 0; first < input.num_sequences; first += kWarpSize) {
    const int s = first + static_cast<int>(threadIdx.x) % kWarpSize;
    sequence += __popc(__ballot_sync(kAllLanes, s < input.num_sequences && input.row_begin[s + 1] <= t));
  }
  return sequence;
}

// One query row: its row of the step, its query head, and its absolute position.
struct QueryRow {
  int64_t t;
  int head, position;
};

// Query rows of one sequence and KV head, from first on. Rows past the last one stand for the last one.
struct QueryTile {
  int row_begin, start, num_rows;  // of the sequence: rows are query rows
  int kv_head, group, first;

  PLUMBLINE_DEVICE bool Has(int row) const { return first + row < num_rows; }
  PLUMBLINE_DEVICE QueryRow Row(int row) const {
    const int i = min(first + row, num_rows - 1), token = i / group;
    return {row_begin + token, kv_head * group + i % group, start + token};
  }
};

// (max, sum, values) before and after a further segment: values = values * keep + segment's values * add. NaN-free while
// either max is finite, and exact where one of them is minus infinity.
struct Merge {
  float max, keep, add;
  PLUMBLINE_DEVICE Merge(float total_max, float segment_max)
      : max(fmaxf(total_max, segment_max)), keep(exp2f(total_max - max)), add(exp2f(segment_max - max)) {}
  PLUMBLINE_DEVICE float operator()(float total, float segment) const { return Apply(total, segment, keep, add); }
  static PLUMBLINE_DEVICE float Apply(float total, float segment, float keep, float add) {
    return fmaf(total, keep, segment * add);
  }
};

// What is written for a merged value: divided by the sum, gated. Adding zero makes -0 and 0 the same.
template <typename T>
PLUMBLINE_DEVICE T Finish(float value, float inverse_sum, const float* gate) {
  float y = value * inverse_sum;
  if (gate != nullptr) y *= 1.0f / (1.0f + expf(-*gate));
  return FromF32<T>(y + 0.0f);
}
template <typename T>
PLUMBLINE_DEVICE const float* GateOf(const AttentionInput<T>& input, int64_t t, int head, int dim) {
  return input.gates == nullptr ? nullptr : input.gates + t * input.gate_stride + int64_t{2} * head * input.head_dim + dim;
}

// ---- what attention.cu chooses from --------------------------------------------------------------------------------

// Query rows of the long sequences; a block walks all segments of a tile.
template <typename T>
void LaunchWalkedAttention(const AttentionInput<T>& input, int num_multiprocessors, cudaStream_t stream);

// Query rows of the short sequences: segments side by side into the workspace, then merged. Segments whose partial results
// do not fit into max_partial_floats (but at least one of every sequence) are taken in passes.
struct SplitPlan {
  bool all_short;  // no sequence is walked, whatever its number of rows
  int num_slots;   // of query tokens with partial results
  int segments_per_pass, num_passes;
  int64_t workspace_floats;
};
template <typename T>
SplitPlan PlanSplit(const AttentionInput<T>& input, int64_t max_partial_floats) {
  const bool all_short = input.num_rows <= int64_t{input.num_sequences} * input.short_tokens;
  const int64_t num_slots = all_short ? input.num_rows : int64_t{input.num_sequences} * input.short_tokens;
  const int64_t rows = num_slots * input.heads, row_floats = input.head_dim + 4;
  const int64_t segments = std::max<int64_t>(1, (input.max_blocks + kSegmentBlocks - 1) / kSegmentBlocks);
  const int64_t per_pass = std::clamp<int64_t>(max_partial_floats / (rows * row_floats), 1, segments);
  return {.all_short = all_short,
          .num_slots = static_cast<int>(num_slots),
          .segments_per_pass = static_cast<int>(per_pass),
          .num_passes = static_cast<int>((segments + per_pass - 1) / per_pass),
          .workspace_floats = rows * (per_pass + 1) * row_floats};
}
template <typename T>
void LaunchSplitAttention(const AttentionInput<T>& input, const SplitPlan& plan, float* workspace, cudaStream_t stream);

// Every row, in plain loops: f32, and heads that tensor cores cannot read.
template <typename T>
void LaunchGeneralAttention(const AttentionInput<T>& input, cudaStream_t stream);

}  // namespace plumbline::cuda
