// LinearWork: one product of rows with a packed weight, as the kernels take it (few_row_linear.cu for generated rows,
// many_row_linear.cu for prompt rows, f32_linear.cu for f32); Linear, GatedLinear and the experts of MoeMlp are all of
// this kind.
#pragma once

#include <cstdint>

#include "kernels/cuda/packed_weight.cuh"
#include "kernels/cuda/primitives.cuh"
#include "kernels/tensor.h"

namespace plumbline::cuda {

// Rows of one weight that a block computes: places [first, first + count) of the row list.
struct RowTile {
  int32_t expert, first, count;
};

// Which rows are computed. Without experts: rows [0, num_places), and a tile of rows by its number.
struct RowList {
  int64_t num_places = 0;
  int num_tiles = 0;                     // with experts: an upper bound
  const RowTile* tiles = nullptr;        // [num_tiles] with experts; count = 0: none. Device memory
  const int32_t* rows = nullptr;         // [num_places] with experts: the row at a place. Device memory
  int rows_per_x = 1;                    // row r is a product with row r / rows_per_x of x
};

enum class LinearResult {
  kSum,     // the root of the tree, to out and rounded
  kGated,   // silu(gate) * up, to rounded
  kLeaves,  // every leaf of [first_leaf, first_leaf + num_leaves) as it is, to out [row][leaf][n]
};

struct LinearWork {
  DType dtype;
  LinearResult result;
  const void* weight = nullptr;
  int64_t expert_bytes = 0;
  int64_t n = 0;                  // columns of the result
  PackedWeight packed = {};
  int first_leaf = 0, num_leaves = 1;
  const void* x = nullptr;                  // [.., num_steps * kStepColumns] padded as the weight, rows aligned to 16 bytes
  int64_t x_stride = 0;
  RowList rows;
  float* out = nullptr;           // [rows, n - num_rounded], or the leaves
  void* rounded = nullptr;        // [rows, num_rounded] act
  int64_t num_rounded = 0, rounded_stride = 0;
  const float* bias = nullptr;    // [n]
};

// A product with the whole weight; the operands are the caller's to add.
inline LinearWork WorkOf(const LinearShape& shape, LinearResult result) {
  LinearWork work = {.dtype = shape.dtype, .result = result};
  work.n = shape.gated ? shape.n / 2 : shape.n;
  work.packed = PackedWeight::Of(shape);
  work.num_leaves = shape.num_leaves;
  return work;
}

enum class Role { kGenerated, kPrompt };
void RunLinear(const LinearWork& work, Role role, cudaStream_t stream);  // linear.cu

// Each enqueues one kernel; nothing when there are no rows or no columns.
void FewRowLinear(LinearWork work, cudaStream_t stream);
void ManyRowLinear(LinearWork work, cudaStream_t stream);
void F32Linear(LinearWork work, cudaStream_t stream);

// Rows in a tile of the list with experts.
inline constexpr int kFewRowTile = 16, kManyRowTile = 64, kF32RowTile = 16;

// Tiles of the list: blocks of a launch.
inline unsigned NumRowTiles(const RowList& rows, int tile_rows) {
  return rows.tiles != nullptr ? static_cast<unsigned>(rows.num_tiles)
                               : static_cast<unsigned>((rows.num_places + tile_rows - 1) / tile_rows);
}

// ---- in the kernels ---------------------------------------------------------------------------------------------------

PLUMBLINE_DEVICE RowTile TileOfBlock(const RowList& rows, int tile_rows) {
  if (rows.tiles != nullptr) return rows.tiles[blockIdx.x];
  const int64_t first = int64_t{blockIdx.x} * tile_rows, left = rows.num_places - first;
  return {0, static_cast<int32_t>(first), static_cast<int32_t>(left < tile_rows ? left : tile_rows)};
}
PLUMBLINE_DEVICE int64_t RowAt(const RowList& rows, int place) { return rows.rows == nullptr ? place : rows.rows[place]; }

// Of the packed weight of an expert; T: uint4 or float.
template <typename T>
PLUMBLINE_DEVICE const T* WeightOf(const LinearWork& work, int expert) {
  return reinterpret_cast<const T*>(static_cast<const char*>(work.weight) + expert * work.expert_bytes);
}
template <typename T>
PLUMBLINE_DEVICE const T* XRowAt(const LinearWork& work, int place) {
  return static_cast<const T*>(work.x) + RowAt(work.rows, place) / work.rows.rows_per_x * work.x_stride;
}

template <typename T>
PLUMBLINE_DEVICE void StoreSum(const LinearWork& work, int64_t row, int64_t n, float sum) {
  if (n >= work.n) return;
  if (work.bias != nullptr) sum += work.bias[n];
  if (n < work.num_rounded) {
    static_cast<T*>(work.rounded)[row * work.rounded_stride + n] = FromF32<T>(sum);
  } else {
    work.out[row * (work.n - work.num_rounded) + n - work.num_rounded] = sum;
  }
}
template <typename T>
PLUMBLINE_DEVICE void StoreGated(const LinearWork& work, int64_t row, int64_t n, float gate, float up) {
  if (n >= work.n) return;
  static_cast<T*>(work.rounded)[row * work.rounded_stride + n] = FromF32<T>(gate / (1.0f + expf(-gate)) * up);
}
PLUMBLINE_DEVICE void StoreLeaf(const LinearWork& work, int64_t row, int leaf, int64_t n, float sum) {
  if (n < work.n) work.out[(row * work.num_leaves + leaf) * work.n + n] = sum;
}

// The balanced tree over num = 1, 2, 4 or 8 sums that come one after another, as a binary counter.
template <int kSize>
struct TreeCounter {
  float levels[3][kSize][4] = {};

  // sums: number `index` of num. Afterwards the root if it was the last, else zeros. Branches would double the registers.
  PLUMBLINE_DEVICE void Add(float (&sums)[kSize][4], int index, int num) {
    bool is_open = true;
#pragma unroll
    for (int level = 0; level < 3; ++level) {
      is_open = is_open && num >> level > 1;
      const bool adds = is_open && (index >> level) % 2 == 1, keeps = is_open && !adds;
#pragma unroll
      for (int i = 0; i < kSize * 4; ++i) {
        float &sum = sums[i / 4][i % 4], &kept = levels[level][i / 4][i % 4];
        sum = adds ? kept + sum : sum;
        kept = keeps ? sum : kept;
        sum = keeps ? 0.0f : sum;
      }
      is_open = adds;
    }
  }
};

// ---- a step of x in shared memory ---------------------------------------------------------------------------------------
// 32 columns of each row in vectors of 16 bytes, placed so that the eight rows of a matrix lie in different banks.

PLUMBLINE_DEVICE int XVector(int row, int chunk) { return row * 4 + (chunk ^ (row >> 1 & 3)); }

// Operand B of the two blocks of 16 columns: rows [first, first + 8).
PLUMBLINE_DEVICE void LoadX(uint32_t (&b)[2][2], const uint4* x, int first) {
  const int lane = threadIdx.x % kWarpSize;
  uint32_t r[4];
  LoadMatrices(r, x + XVector(first + lane % 8, lane / 8));
  b[0][0] = r[0], b[0][1] = r[1], b[1][0] = r[2], b[1][1] = r[3];
}
PLUMBLINE_DEVICE void LoadWeight(uint32_t (&a)[4], const uint4* vectors) {
  const uint4 v = vectors[threadIdx.x % kWarpSize];
  a[0] = v.x, a[1] = v.y, a[2] = v.z, a[3] = v.w;
}

}  // namespace plumbline::cuda
