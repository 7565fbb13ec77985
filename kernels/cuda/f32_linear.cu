// Products in f32, for audits: a block computes 16 rows by a tile of the weight, a thread one of them, by fmaf in
// ascending k, a leaf at a time, then the balanced tree. Limited by the loads from shared memory, two a product.
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/linear_work.cuh"
#include "kernels/cuda/types.cuh"

namespace plumbline::cuda {
namespace {

constexpr int kThreads = kF32RowTile * kTileRows;
constexpr int kStride = kStepColumns + 1;
constexpr size_t kSharedBytes = size_t{kF32RowTile + kTileRows} * kStride * sizeof(float);

__global__ void __launch_bounds__(kThreads) F32Kernel(LinearWork work) {
  const RowTile tile = TileOfBlock(work.rows, kF32RowTile);
  if (tile.count <= 0) return;
  float* shared_x = SharedMemory<float>();
  float* shared_weight = shared_x + kF32RowTile * kStride;
  const int r = threadIdx.x / kTileRows, w = threadIdx.x % kTileRows;
  const int64_t first_step = work.first_leaf * work.packed.leaf_steps;
  const float* weight =
      WeightOf<float>(work, tile.expert) + (blockIdx.y * work.packed.num_steps + first_step) * kTileRows * kStepColumns;
  const float* x = XRowAt<float>(work, tile.first + (r < tile.count ? r : 0)) + first_step * kStepColumns;

  float sum[1][4] = {};  // one of them is in use
  TreeCounter<1> tree;
  const int64_t row = r < tile.count ? RowAt(work.rows, tile.first + r) : 0;
  for (int leaf = 0; leaf < work.num_leaves; ++leaf) {
    for (int64_t step = leaf * work.packed.leaf_steps; step < (leaf + 1) * work.packed.leaf_steps; ++step) {
      __syncthreads();  // the step before has been read
#pragma unroll
      for (int i = w; i < kStepColumns; i += kTileRows) {
        shared_x[r * kStride + i] = x[step * kStepColumns + i];
        shared_weight[r * kStride + i] = weight[(step * kTileRows + r) * kStepColumns + i];
      }
      __syncthreads();
#pragma unroll
      for (int i = 0; i < kStepColumns; ++i) {
        sum[0][0] = fmaf(shared_x[r * kStride + i], shared_weight[w * kStride + i], sum[0][0]);
      }
    }
    if (work.result == LinearResult::kLeaves) {
      if (r < tile.count) StoreLeaf(work, row, leaf, int64_t{blockIdx.y} * kTileRows + w, sum[0][0]);
      sum[0][0] = 0.0f;
    } else {
      tree.Add(sum, leaf, work.num_leaves);
    }
  }
  const float other = __shfl_xor_sync(kAllLanes, sum[0][0], 8);  // gated: the up projection of the lane's gate
  if (r >= tile.count) return;
  if (work.result == LinearResult::kSum) StoreSum<float>(work, row, int64_t{blockIdx.y} * kTileRows + w, sum[0][0]);
  if (work.result == LinearResult::kGated && w < 8) {
    StoreGated<float>(work, row, int64_t{blockIdx.y} * 8 + w, sum[0][0], other);
  }
}

}  // namespace

void F32Linear(LinearWork work, cudaStream_t stream) {
  const dim3 grid(NumRowTiles(work.rows, kF32RowTile), static_cast<unsigned>(work.packed.num_tiles));
  if (grid.x == 0 || grid.y == 0) return;
  Launch({grid, kThreads, kSharedBytes, stream}, F32Kernel, work);
}

}  // namespace plumbline::cuda
