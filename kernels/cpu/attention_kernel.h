// Attention of some rows over the segments of their sequence. A segment's keys and values are brought into the form of
// the matrix products once for all rows of a task (tokens x query heads of one KV head). A tile of rows then meets them
// as two products around a softmax, and the segment's (max, sum, weighted values) merges into the rows' running totals.
// What a row adds never depends on the other rows: keys past its own position get weight zero exactly.
#pragma once

#include <math.h>

#include "kernels/cpu/flush_subnormals.h"
#include "kernels/cpu/sequence_kernels.h"
#include "kernels/cpu/small_gemm.h"

namespace plumbline {
namespace {

inline constexpr int kSegment = 256;  // kSegmentTokens
inline constexpr int kBlock = 64;     // kBlockTokens
inline constexpr int kTileRows = 32;  // whose scores and weights of a segment stay near the L1 cache

// Scratch memory of a task, by the number of rows and the head dim.
struct AttentionScratch {
  AttentionScratch(void* memory, int num_rows, int head_dim)
      : rows(RoundUp(num_rows, kTileRows)), dim(RoundUp(head_dim, 32)) {
    int64_t used = 0;
    const auto take = [&](int64_t count) {
      float* at = static_cast<float*>(memory) + used;
      used += RoundUp(count, 16);
      return at;
    };
    queries = take(int64_t{rows} * (dim + 16));
    keys = take(int64_t{dim} * (kSegment + 16));
    values = take(int64_t{kSegment} * (dim + 16));
    scores = take(int64_t{kTileRows} * (kSegment + 16));
    weights = take(int64_t{kTileRows} * (kSegment + 32));
    partial = take(int64_t{kTileRows} * (dim + 16));
    total = take(int64_t{rows} * (dim + 16));
    max = take(rows);
    sum = take(rows);
    num_floats = used;
  }
  int rows, dim;  // padded
  float *queries, *keys, *values;     // of the task; of a segment
  float *scores, *weights, *partial;  // of a tile of rows
  float *total, *max, *sum;           // of the task
  int64_t score_stride() const { return kSegment + 16; }
  int64_t value_stride() const { return dim + 16; }
  int64_t num_floats;
};

inline int64_t AttentionScratchBytes(int num_rows, int head_dim) {
  return AttentionScratch(nullptr, num_rows, head_dim).num_floats * 4;
}

// Rows [first, first + count) of the task against keys [0, num_keys) of the segment; num_keys is a multiple of 32.
struct RowTile {
  int first, count, num_keys;
};

// Row `key` of the segment that starts at block table entry `blocks`.
template <typename T>
const T* CacheRow(const AttentionTask& task, const void* cache, const int32_t* blocks, int key) {
  return static_cast<const T*>(cache) + blocks[key / kBlock] * task.block_stride +
         static_cast<int64_t>(key % kBlock) * task.head_dim;
}

// Products in f32, for any element type.
template <typename Simd, typename T>
struct F32Products {
  static void Begin() {}
  static void End() {}

  static void PackQueries(const AttentionTask& task, const AttentionScratch& s) {
    for (int t = 0; t < task.num_tokens; ++t) {
      for (int h = 0; h < task.group; ++h) {
        const T* from = static_cast<const T*>(task.q) + t * task.q_stride + h * task.head_dim;
        float* to = s.queries + (t * task.group + h) * s.value_stride();
        for (int i = 0; i < task.head_dim; i += 16) {
          Simd::Store(to + i, Simd::LoadN(from + i, Least(16, task.head_dim - i)));
        }
      }
    }
  }
  // keys[i][key], each group of 16 keys transposed.
  static void PackKeys(const AttentionTask& task, const AttentionScratch& s, const int32_t* blocks, int num_keys) {
    for (int key = 0; key < num_keys; key += 16) {
      const T* from = CacheRow<T>(task, task.k_cache, blocks, key);
      for (int i = 0; i < task.head_dim; i += 16) {
        const int n = Least(16, task.head_dim - i);
        typename Simd::F lanes[16];
        for (int j = 0; j < 16; ++j) lanes[j] = Simd::LoadN(from + j * task.head_dim + i, n);
        Simd::Transpose(lanes);
        for (int j = 0; j < n; ++j) Simd::Store(s.keys + (i + j) * s.score_stride() + key, lanes[j]);
      }
    }
  }
  static void Scores(const AttentionTask& task, const AttentionScratch& s, const RowTile& tile) {
    Multiply<Simd>({.a = s.queries + tile.first * s.value_stride(), .a_stride = s.value_stride(), .b = s.keys,
                    .b_stride = s.score_stride(), .c = s.scores, .c_stride = s.score_stride(), .m = tile.count,
                    .n = tile.num_keys, .k = task.head_dim});
  }
  // values[key][i], zero from num_valid on.
  static void PackValues(const AttentionTask& task, const AttentionScratch& s, const int32_t* blocks, int num_keys,
                         int num_valid) {
    for (int key = 0; key < num_keys; ++key) {
      const T* from = CacheRow<T>(task, task.v_cache, blocks, key);
      for (int i = 0; i < task.head_dim; i += 16) {
        Simd::Store(s.values + key * s.value_stride() + i,
                    key < num_valid ? Simd::LoadN(from + i, Least(16, task.head_dim - i)) : Simd::Zero());
      }
    }
  }
  // Weights of keys [key, key + 16) and [key + 16, key + 32) of a row of the tile.
  static void StoreWeights(const AttentionScratch& s, int row, int key, typename Simd::F p0, typename Simd::F p1) {
    Simd::Store(s.weights + row * s.score_stride() + key, p0);
    Simd::Store(s.weights + row * s.score_stride() + key + 16, p1);
  }
  static void WeightedValues(const AttentionTask& task, const AttentionScratch& s, const RowTile& tile) {
    Multiply<Simd>({.a = s.weights, .a_stride = s.score_stride(), .b = s.values, .b_stride = s.value_stride(),
                    .c = s.partial, .c_stride = s.value_stride(), .m = tile.count,
                    .n = RoundUp(task.head_dim, 16), .k = tile.num_keys});
  }
};

// Softmax numerators of one row of the tile over one segment; the first `limit` >= 1 keys count. Returns {max, sum}.
struct SegmentSum {
  float max, sum;
};
template <typename Simd, typename Products>
SegmentSum SoftmaxRow(const AttentionScratch& s, int row, int limit, int num_keys, float scale) {
  const float* scores = s.scores + row * s.score_stride();
  const int whole = limit / 32 * 32;  // keys in groups that count as a whole
  auto largest = Simd::Set(-INFINITY), largest_odd = largest;
  for (int key = 0; key < whole; key += 32) {
    largest = Simd::Max(largest, Simd::Load(scores + key));
    largest_odd = Simd::Max(largest_odd, Simd::Load(scores + key + 16));
  }
  largest = Simd::Max(largest, largest_odd);
  for (int key = whole; key < limit; key += 16) {
    largest = Simd::Max(largest, Simd::FirstN(Simd::Load(scores + key), Least(16, limit - key), -INFINITY));
  }
  const float max = Simd::MaxOf(largest) * scale;
  const auto maxes = Simd::Set(max), scales = Simd::Set(scale);
  const auto weights_of = [&](int key) __attribute__((always_inline)) {
    return Simd::Exp(Simd::Sub(Simd::Mul(Simd::Load(scores + key), scales), maxes));
  };
  const auto first_weights_of = [&](int key) __attribute__((always_inline)) {
    return key < limit ? Simd::FirstN(weights_of(key), Least(16, limit - key), 0.0f) : Simd::Zero();
  };
  typename Simd::F sum = Simd::Zero();
  for (int key = 0; key < whole; key += 32) {
    const auto p0 = weights_of(key), p1 = weights_of(key + 16);
    sum = Simd::Add(Simd::Add(sum, p0), p1);
    Products::StoreWeights(s, row, key, p0, p1);
  }
  for (int key = whole; key < num_keys; key += 32) {
    const auto p0 = first_weights_of(key), p1 = first_weights_of(key + 16);
    sum = Simd::Add(Simd::Add(sum, p0), p1);
    Products::StoreWeights(s, row, key, p0, p1);
  }
  return {max, Simd::Sum(sum)};
}

// Adds a segment, whose weighted values are row tile_row of the tile, to the row's total.
template <typename Simd>
void MergeSegment(const AttentionScratch& s, int row, int tile_row, int head_dim, bool is_first, SegmentSum segment) {
  const float* partial = s.partial + tile_row * s.value_stride();
  float* total = s.total + row * s.value_stride();
  float old_factor = 0, new_factor = 1;
  if (is_first) {
    s.max[row] = segment.max;
    s.sum[row] = segment.sum;
    for (int i = 0; i < head_dim; i += 16) Simd::Store(total + i, Simd::Load(partial + i));
    return;
  }
  const float max = segment.max > s.max[row] ? segment.max : s.max[row];
  old_factor = Simd::MaxOf(Simd::Exp(Simd::Set(s.max[row] - max)));
  new_factor = Simd::MaxOf(Simd::Exp(Simd::Set(segment.max - max)));
  s.max[row] = max;
  s.sum[row] = s.sum[row] * old_factor + segment.sum * new_factor;
  const auto old_factors = Simd::Set(old_factor), new_factors = Simd::Set(new_factor);
  for (int i = 0; i < head_dim; i += 16) {
    const auto scaled = Simd::Mul(Simd::Load(partial + i), new_factors);
    Simd::Store(total + i, Simd::Fma(Simd::Load(total + i), old_factors, scaled));
  }
}

template <typename Simd, typename T>
void WriteAttention(const AttentionTask& task, const AttentionScratch& s) {
  for (int t = 0; t < task.num_tokens; ++t) {
    for (int h = 0; h < task.group; ++h) {
      const int row = t * task.group + h;
      const auto factor = Simd::Set(1.0f / s.sum[row]);
      T* out = static_cast<T*>(task.out) + t * task.out_stride + h * task.head_dim;
      const float* gate = task.gate == nullptr ? nullptr : task.gate + t * task.gate_stride + 2 * h * task.head_dim;
      for (int i = 0; i < task.head_dim; i += 16) {
        const int n = Least(16, task.head_dim - i);
        auto x = Simd::Mul(Simd::Load(s.total + row * s.value_stride() + i), factor);
        if (gate != nullptr) x = Simd::Mul(x, Simd::Sigmoid(Simd::LoadN(gate + i, n)));
        Simd::StoreN(out + i, x, n);
      }
    }
  }
}

// The rows of a tile against the segment that begins at `begin` and reaches to the task's last position at most.
template <typename Simd, typename Products>
void AttendSegment(const AttentionTask& task, const AttentionScratch& s, int first, int count, int64_t begin) {
  const auto limit_of = [&](int row) {  // keys of the segment that the row may see
    const int64_t limit = task.first_position + row / task.group + 1 - begin;
    return static_cast<int>(limit < kSegment ? limit : kSegment);
  };
  const int last_limit = limit_of(first + count - 1);
  if (last_limit <= 0) return;
  const RowTile tile = {first, count, RoundUp(last_limit, 32)};
  Products::Scores(task, s, tile);
  SegmentSum sums[kTileRows];
  for (int i = 0; i < count; ++i) {
    const int limit = limit_of(first + i);
    if (limit > 0) sums[i] = SoftmaxRow<Simd, Products>(s, i, limit, tile.num_keys, task.scale);
  }
  Products::WeightedValues(task, s, tile);
  for (int i = 0; i < count; ++i) {
    if (limit_of(first + i) > 0) MergeSegment<Simd>(s, first + i, i, task.head_dim, begin == 0, sums[i]);
  }
}

template <typename Simd, typename T, typename Products>
void AttentionKernel(const AttentionTask& task) {
  const FlushSubnormals flush;
  const int num_rows = task.num_tokens * task.group;
  const AttentionScratch s(task.scratch, num_rows, task.head_dim);
  const int64_t end = task.first_position + task.num_tokens;
  Products::Begin();
  Products::PackQueries(task, s);
  for (int64_t begin = 0; begin < end; begin += kSegment) {
    const int32_t* blocks = task.blocks + begin / kBlock;
    const int num_valid = end - begin < kSegment ? static_cast<int>(end - begin) : kSegment;
    const int num_keys = RoundUp(num_valid, 32);
    Products::PackKeys(task, s, blocks, num_keys);
    Products::PackValues(task, s, blocks, num_keys, num_valid);
    for (int first = 0; first < num_rows; first += kTileRows) {
      AttendSegment<Simd, Products>(task, s, first, Least(kTileRows, num_rows - first), begin);
    }
  }
  Products::End();
  WriteAttention<Simd, T>(task, s);
}

}  // namespace
}  // namespace plumbline
