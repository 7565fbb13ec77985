// AttentionTile: 16 kRowTiles query rows against the KV blocks of a segment, on tensor cores. A row tile of 16 rows is
// shared by kParts warps: each computes the scores of 64 / kParts keys, all of them see all scores (through shared memory),
// and each sums kDim / kParts columns of the values. So the bits of a row depend neither on kRowTiles nor on kParts: a score
// is one chain over the head dim, a value one chain over the keys, and the sum of the weights is always that of 4 lanes.
//
// Weights go through two 16-bit numbers, the rounded one and what is left of it: they keep 16 bits (bf16) or 22 (f16).
// Shared memory: rows are 16 bytes longer than a multiple of 128, so ldmatrix has no bank conflicts.
#pragma once

#include "kernels/cuda/attention.cuh"

namespace plumbline::cuda {

// Where segment and total fill the registers, compilers for sm_120 spill if all steps are unrolled, for the others if not
// all.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
inline constexpr int kScoreStepsOfPairs = 4;
#else
inline constexpr int kScoreStepsOfPairs = 16;
#endif

template <typename T, int kDim, int kRowTiles, int kParts>
class AttentionTile {
 public:
  static constexpr int kThreads = kWarpSize * kRowTiles * kParts;
  static constexpr int kRows = kTileRows * kRowTiles;
  static constexpr int kColumnTiles = kDim / kParts / 8;  // of a warp's values
  static constexpr int kColumns = 8 * kColumnTiles;
  static constexpr size_t kSharedBytes =
      (kRows + 2 * kBlockTokens) * (kDim + 8) * sizeof(T) + (kParts > 1 ? kRows * kBlockTokens * sizeof(float) : 0);

  // A thread's share of the results of a segment: rows g = lane / 4 and g + 8 of its row tile.
  struct Segment {
    float max[2], sum[2];
    float values[kColumnTiles][4];
  };

  PLUMBLINE_DEVICE AttentionTile(const AttentionInput<T>& input, const QueryTile& rows, int sequence)
      : input_(input), rows_(rows), blocks_(input.block_table + sequence * input.max_blocks) {
    first_position_ = rows.Row(0).position;
    last_position_ = rows.Row(kRows - 1).position;
    position_[0] = rows.Row(row(0)).position;
    position_[1] = rows.Row(row(1)).position;
  }

  // Row of the tile: half 0 is g, half 1 g + 8; and the first of this thread's two columns in column tile j.
  PLUMBLINE_DEVICE int row(int half) const { return row_tile() * kTileRows + lane() / 4 + 8 * half; }
  PLUMBLINE_DEVICE int column(int j) const { return part() * kColumns + 8 * j + lane() % 4 * 2; }
  // rows.Row(row(half)), from the position: less is kept in registers.
  PLUMBLINE_DEVICE QueryRow Query(int half) const {
    const int token = position_[half] - rows_.start, i = min(rows_.first + row(half), rows_.num_rows - 1);
    return {rows_.row_begin + token, (rows_.kv_head - token) * rows_.group + i, position_[half]};
  }
  // One thread of those that hold a row's max and sum.
  PLUMBLINE_DEVICE bool IsFirstOfRow() const { return part() == 0 && lane() % 4 == 0; }
  PLUMBLINE_DEVICE int num_segments() const { return last_position_ / kSegmentTokens + 1; }

  // take(segment, result) for segments first, first + step, ... below end. All threads call it; keys arrive while the block
  // before is summed, values while scores are computed.
  template <typename Take>
  PLUMBLINE_DEVICE void Walk(int first, int step, int end, const Take& take) {
    end = min(end, num_segments());
    if (first >= end) return;
    int cache_block = blocks_[first * kSegmentBlocks];
    LoadQueries();
    LoadBlock(keys(), input_.k_cache, cache_block, first * kSegmentBlocks);
    CommitCopies();
    for (int segment = first; segment < end; segment += step) {
      Segment result;
#pragma unroll
      for (int half = 0; half < 2; ++half) result.max[half] = -INFINITY, result.sum[half] = 0;
#pragma unroll
      for (int j = 0; j < kColumnTiles; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) result.values[j][i] = 0;
      }
      const int end_block = min((segment + 1) * kSegmentBlocks, last_position_ / kBlockTokens + 1);
      for (int block = segment * kSegmentBlocks; block < end_block; ++block) {
        const bool is_last = block + 1 == end_block && segment + step >= end;
        const int next = block + 1 < end_block ? block + 1 : (segment + step) * kSegmentBlocks;
        const int next_cache_block = is_last ? 0 : blocks_[next];
        WaitForCopies<0>();
        __syncthreads();  // keys are here, and nobody reads values any more
        LoadBlock(values(), input_.v_cache, cache_block, block);
        CommitCopies();
        float scores[kBlockTokens / 8][4];
        ComputeScores(scores);
        if constexpr (kParts == 1) ToWeights(scores, block, result);
        WaitForCopies<0>();
        __syncthreads();  // values are here, and nobody reads keys any more
        if (!is_last) LoadBlock(keys(), input_.k_cache, next_cache_block, next);
        CommitCopies();
        if constexpr (kParts > 1) {
          GatherScores(scores);
          ToWeights(scores, block, result);
        }
        AddValues(scores, result);
        cache_block = next_cache_block;
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        result.sum[half] += __shfl_xor_sync(kAllLanes, result.sum[half], 1);
        result.sum[half] += __shfl_xor_sync(kAllLanes, result.sum[half], 2);
      }
      take(segment, result);
    }
    WaitForCopies<0>();
  }

 private:
  static constexpr int kStride = kDim + 8;
  static constexpr int kPartTiles = kBlockTokens / kParts / 8;  // of 8 keys
  // Products over 16 dims that are unrolled: as far as registers go.
  static constexpr int kScoreSteps = kParts == 2 ? kScoreStepsOfPairs : 2;
  static_assert(kPartTiles % 2 == 0 && kColumnTiles % 2 == 0);

  PLUMBLINE_DEVICE static int lane() { return threadIdx.x % kWarpSize; }
  PLUMBLINE_DEVICE static int row_tile() { return threadIdx.x / kWarpSize / kParts; }
  PLUMBLINE_DEVICE static int part() { return threadIdx.x / kWarpSize % kParts; }
  PLUMBLINE_DEVICE static T* queries() { return SharedMemory<T>(); }
  PLUMBLINE_DEVICE static T* keys() { return queries() + kRows * kStride; }
  PLUMBLINE_DEVICE static T* values() { return keys() + kBlockTokens * kStride; }
  // [row tile][8 keys][lane] of a product's four numbers
  PLUMBLINE_DEVICE static float4* shared_scores() { return reinterpret_cast<float4*>(values() + kBlockTokens * kStride); }

  // A thread copies the same 8 columns of every kRowsAtOnce-th row. The head dim is padded with zeros to kDim.
  static constexpr int kRowsAtOnce = kThreads / (kDim / 8);
  static_assert(kThreads % (kDim / 8) == 0 && kBlockTokens % kRowsAtOnce == 0);
  PLUMBLINE_DEVICE static int copy_row() { return threadIdx.x / (kDim / 8); }
  PLUMBLINE_DEVICE static int copy_column() { return threadIdx.x % (kDim / 8) * 8; }

  PLUMBLINE_DEVICE void LoadQueries() const {
    const int column = copy_column();
#pragma unroll 1
    for (int row = copy_row(); row < kRows; row += kRowsAtOnce) {
      const QueryRow query = rows_.Row(row);
      const T* from = input_.q + (query.t * input_.heads + query.head) * input_.head_dim + column;
      CopyAsync16(queries() + row * kStride + column, from, column < input_.head_dim);
    }
  }
  // Rows past the last position are zeros: what lies there may be NaN, and weights of zero would keep it.
  PLUMBLINE_DEVICE void LoadBlock(T* to, const T* cache, int cache_block, int block) const {
    const int64_t first_row = (int64_t{cache_block} * input_.kv_heads + rows_.kv_head) * kBlockTokens + copy_row();
    const T* from = cache + first_row * input_.head_dim + copy_column();
    const int step = kRowsAtOnce * input_.head_dim;
    to += copy_row() * kStride + copy_column();
    const int num_valid = copy_column() < input_.head_dim ? last_position_ + 1 - block * kBlockTokens - copy_row() : 0;
#pragma unroll
    for (int row = 0; row < kBlockTokens; row += kRowsAtOnce) {
      CopyAsync16(to + row * kStride, from, row < num_valid);
      from += step;
    }
  }

  // Of this part's keys; kParts > 1: into shared memory.
  PLUMBLINE_DEVICE void ComputeScores(float (&scores)[kBlockTokens / 8][4]) const {
    float own[kPartTiles][4] = {};
    const T* a_row = queries() + (row_tile() * kTileRows + lane() % 16) * kStride + lane() / 16 * 8;
    const T* b_row = keys() + (part() * kPartTiles * 8 + lane() / 16 * 8 + lane() % 8) * kStride + lane() / 8 % 2 * 8;
#pragma unroll kScoreSteps
    for (int k = 0; k < kDim; k += 16) {
      uint32_t a[4];
      LoadMatrices(a, a_row + k);
#pragma unroll
      for (int j = 0; j < kPartTiles; j += 2) {
        uint32_t b[4];
        LoadMatrices(b, b_row + j * 8 * kStride + k);
        Mma16816<T>(own[j], a, {b[0], b[1]});
        Mma16816<T>(own[j + 1], a, {b[2], b[3]});
      }
    }
#pragma unroll
    for (int j = 0; j < kPartTiles; ++j) {
      if constexpr (kParts == 1) {
#pragma unroll
        for (int i = 0; i < 4; ++i) scores[j][i] = own[j][i];
      } else {
        const int tile = row_tile() * (kBlockTokens / 8) + part() * kPartTiles + j;
        shared_scores()[tile * kWarpSize + lane()] = make_float4(own[j][0], own[j][1], own[j][2], own[j][3]);
      }
    }
  }
  PLUMBLINE_DEVICE void GatherScores(float (&scores)[kBlockTokens / 8][4]) const {
#pragma unroll
    for (int j = 0; j < kBlockTokens / 8; ++j) {
      const float4 four = shared_scores()[(row_tile() * (kBlockTokens / 8) + j) * kWarpSize + lane()];
      scores[j][0] = four.x, scores[j][1] = four.y, scores[j][2] = four.z, scores[j][3] = four.w;
    }
  }

  // Scores become exp2(score - max); sums and values so far shrink to the new max. A row that sees no key of the block keeps
  // its bits.
  PLUMBLINE_DEVICE void ToWeights(float (&scores)[kBlockTokens / 8][4], int block, Segment& result) const {
    const bool is_masked = (block + 1) * kBlockTokens - 1 > first_position_;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float max = result.max[half];
#pragma unroll
      for (int j = 0; j < kBlockTokens / 8; ++j) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& score = scores[j][2 * half + i];
          score *= input_.scale;
          if (is_masked && block * kBlockTokens + 8 * j + lane() % 4 * 2 + i > position_[half]) score = -INFINITY;
          max = fmaxf(max, score);
        }
      }
      max = fmaxf(max, __shfl_xor_sync(kAllLanes, max, 1));
      max = fmaxf(max, __shfl_xor_sync(kAllLanes, max, 2));
      const float base = max == -INFINITY ? 0.0f : max;
      const float keep = exp2f(result.max[half] - base);
      float sum = 0;
#pragma unroll
      for (int j = 0; j < kBlockTokens / 8; ++j) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& score = scores[j][2 * half + i];
          score = exp2f(score - base);
          sum += score;
        }
      }
      result.max[half] = max;
      result.sum[half] = fmaf(result.sum[half], keep, sum);
#pragma unroll
      for (int j = 0; j < kColumnTiles; ++j) {
        result.values[j][2 * half] *= keep;
        result.values[j][2 * half + 1] *= keep;
      }
    }
  }

  PLUMBLINE_DEVICE void AddValues(const float (&weights)[kBlockTokens / 8][4], Segment& result) const {
    const T* row = values() + lane() % 16 * kStride + part() * kColumns + lane() / 16 * 8;
#pragma unroll
    for (int k = 0; k < kBlockTokens / 16; ++k) {
      uint32_t high[4], low[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float x = weights[2 * k + i / 2][i % 2 * 2], y = weights[2 * k + i / 2][i % 2 * 2 + 1];
        high[i] = Pack<T>(x, y);
        low[i] = Pack<T>(x - LowOf<T>(high[i]), y - HighOf<T>(high[i]));
      }
#pragma unroll
      for (int j = 0; j < kColumnTiles; j += 2) {
        uint32_t b[4];
        LoadMatricesTransposed(b, row + k * 16 * kStride + j * 8);
        Mma16816<T>(result.values[j], low, {b[0], b[1]});
        Mma16816<T>(result.values[j + 1], low, {b[2], b[3]});
        Mma16816<T>(result.values[j], high, {b[0], b[1]});
        Mma16816<T>(result.values[j + 1], high, {b[2], b[3]});
      }
    }
  }

  const AttentionInput<T>& input_;
  const QueryTile rows_;
  const int32_t* blocks_;
  int first_position_, last_position_;  // of the tile
  int position_[2];                     // of this thread's rows
};

// function.operator()<kDim>() with the smallest kDim of 64, 128, 256 that holds the head dim.
template <typename Function>
void VisitHeadDim(int head_dim, const Function& function) {
  if (head_dim <= 64) return function.template operator()<64>();
  if (head_dim <= 128) return function.template operator()<128>();
  return function.template operator()<256>();
}

}  // namespace plumbline::cuda
