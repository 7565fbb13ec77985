// Products of prompt rows: blocks of 128 columns of the result by 128 rows, 64 where leaves are combined or experts
// chosen.
//
// Order of a sum: a leaf is one accumulation in ascending k in registers, then the leaves' balanced tree as a binary
// counter, of which three levels live in registers: that is why a block with a tree has half of the rows.
//
// Limited by the tensor cores: a step of 32 columns costs a warp 32 products of m16n8k16 for 6 KiB from shared memory,
// 48 clocks a multiprocessor against 64 of an A100's tensor cores; with a tree 16 for 4 KiB, 32 against 32. Expected:
// 75-80 % of the mma.sync peak without a tree, 60-65 % with. Tiles of rows are neighbours in the grid, so the weight is
// read from memory once.
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/linear_work.cuh"
#include "kernels/cuda/types.cuh"

namespace plumbline::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarpsAlongN = 4, kWarpsAlongRows = 2;
constexpr int kTiles = 8;  // of the weight: two a warp
constexpr int kTilesOfWarp = kTiles / kWarpsAlongN;
constexpr int kStages = 4;
constexpr int kWeightVectors = kTiles * kStepVectors;

// kGroups: of 8 rows, of a warp.
constexpr int RowsOf(int groups) { return kWarpsAlongRows * groups * 8; }
constexpr int StageVectorsOf(int groups) { return kWeightVectors + RowsOf(groups) * 4; }

// What a thread copies in each step: vectors of the weight, and chunk threadIdx % 4 of some rows.
template <typename T, int kGroups>
struct Copies {
  static constexpr int kWeightCopies = kWeightVectors / kThreads;
  static constexpr int kRowCopies = RowsOf(kGroups) * 4 / kThreads;
  const uint4* weight[kWeightCopies];
  bool has_weight[kWeightCopies];
  const T* x[kRowCopies];
  bool has_row[kRowCopies];

  PLUMBLINE_DEVICE Copies(const LinearWork& work, const RowTile& tile, int64_t first_tile, int64_t first_step) {
    const uint4* vectors = WeightOf<uint4>(work, tile.expert);
#pragma unroll
    for (int i = 0; i < kWeightCopies; ++i) {
      const int vector = i * kThreads + threadIdx.x;
      const int64_t tile_of_weight = first_tile + vector / kStepVectors;
      has_weight[i] = tile_of_weight < work.packed.num_tiles;
      weight[i] = vectors + (tile_of_weight * work.packed.num_steps + first_step) * kStepVectors + vector % kStepVectors;
    }
#pragma unroll
    for (int i = 0; i < kRowCopies; ++i) {
      const int row = (i * kThreads + threadIdx.x) / 4;
      has_row[i] = row < tile.count;
      x[i] = XRowAt<T>(work, tile.first + (has_row[i] ? row : 0)) + first_step * kStepColumns + threadIdx.x % 4 * 8;
    }
  }

  PLUMBLINE_DEVICE void Start(uint4* stage, int step) const {
#pragma unroll
    for (int i = 0; i < kWeightCopies; ++i) {
      CopyAsync16(stage + i * kThreads + threadIdx.x, weight[i] + int64_t{step} * kStepVectors, has_weight[i]);
    }
#pragma unroll
    for (int i = 0; i < kRowCopies; ++i) {
      const int row = (i * kThreads + threadIdx.x) / 4;
      CopyAsync16(stage + kWeightVectors + XVector(row, threadIdx.x % 4), x[i] + int64_t{step} * kStepColumns, has_row[i]);
    }
  }
};

// sums: [tile of the weight][group of rows] of this warp.
template <typename T, LinearResult kResult, int kGroups>
PLUMBLINE_DEVICE void Store(const LinearWork& work, const RowTile& tile, int64_t first_tile, int leaf,
                            const float (&sums)[kTilesOfWarp * kGroups][4]) {
  const int lane = threadIdx.x % kWarpSize, first_row = threadIdx.x / kWarpSize / kWarpsAlongN * kGroups * 8;
#pragma unroll
  for (int i = 0; i < kTilesOfWarp * kGroups; ++i) {
    const int64_t tile_of_weight = first_tile + i / kGroups;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int r = first_row + i % kGroups * 8 + lane % 4 * 2 + j;
      if (r >= tile.count) continue;
      const int64_t row = RowAt(work.rows, tile.first + r), n = tile_of_weight * kTileRows + lane / 4;
      if constexpr (kResult == LinearResult::kGated) {
        StoreGated<T>(work, row, tile_of_weight * 8 + lane / 4, sums[i][j], sums[i][2 + j]);
      } else if constexpr (kResult == LinearResult::kSum) {
        StoreSum<T>(work, row, n, sums[i][j]);
        StoreSum<T>(work, row, n + 8, sums[i][2 + j]);
      } else {
        StoreLeaf(work, row, leaf, n, sums[i][j]);
        StoreLeaf(work, row, leaf, n + 8, sums[i][2 + j]);
      }
    }
  }
}

template <typename T, LinearResult kResult, int kGroups, bool kHasTree>
__global__ void __launch_bounds__(kThreads, kHasTree ? 1 : 2) ManyRowKernel(LinearWork work) {
  const RowTile tile = TileOfBlock(work.rows, RowsOf(kGroups));
  if (tile.count <= 0) return;
  const int warp = threadIdx.x / kWarpSize;
  const int leaf_steps = static_cast<int>(work.packed.leaf_steps), num_steps = leaf_steps * work.num_leaves;
  const int64_t block_tile = int64_t{blockIdx.y} * kTiles, warp_tile = block_tile + warp % kWarpsAlongN * kTilesOfWarp;
  const int first_row = warp / kWarpsAlongN * kGroups * 8;
  const Copies<T, kGroups> copies(work, tile, block_tile, int64_t{work.first_leaf} * leaf_steps);
  uint4* ring = SharedMemory<uint4>();
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) {
    if (i < num_steps) copies.Start(ring + i * StageVectorsOf(kGroups), i);
    CommitCopies();
  }

  float sums[kTilesOfWarp * kGroups][4] = {};
  TreeCounter<kTilesOfWarp * kGroups> tree;
  int stage = 0, step_of_leaf = 0, leaf = 0;
  for (int step = 0; step < num_steps; ++step) {
    WaitForCopies<kStages - 2>();
    __syncthreads();  // the stage is whole, and the one before it has been read by all warps
    const int next = step + kStages - 1, next_stage = stage == 0 ? kStages - 1 : stage - 1;
    if (next < num_steps) copies.Start(ring + next_stage * StageVectorsOf(kGroups), next);
    CommitCopies();
    const uint4* at = ring + stage * StageVectorsOf(kGroups);
    if (++stage == kStages) stage = 0;
    uint32_t a[kTilesOfWarp][2][4];
#pragma unroll
    for (int i = 0; i < kTilesOfWarp * 2; ++i) {
      LoadWeight(a[i / 2][i % 2], at + (warp % kWarpsAlongN * kTilesOfWarp * 2 + i) * kWarpSize);
    }
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      if (first_row + group * 8 >= tile.count) break;  // nothing but rows past the end
      uint32_t b[2][2];
      LoadX(b, at + kWeightVectors, first_row + group * 8);
#pragma unroll
      for (int i = 0; i < kTilesOfWarp; ++i) Mma16816<T>(sums[i * kGroups + group], a[i][0], b[0]);
#pragma unroll
      for (int i = 0; i < kTilesOfWarp; ++i) Mma16816<T>(sums[i * kGroups + group], a[i][1], b[1]);
    }
    if (++step_of_leaf < leaf_steps) continue;
    step_of_leaf = 0;
    if constexpr (kHasTree) tree.Add(sums, leaf, work.num_leaves);
    if constexpr (kResult == LinearResult::kLeaves) {
      Store<T, kResult, kGroups>(work, tile, warp_tile, leaf, sums);
#pragma unroll
      for (int i = 0; i < kTilesOfWarp * kGroups * 4; ++i) sums[i / 4][i % 4] = 0.0f;
    }
    ++leaf;
  }
  WaitForCopies<0>();
  if constexpr (kResult != LinearResult::kLeaves) Store<T, kResult, kGroups>(work, tile, warp_tile, 0, sums);
}

template <typename T, LinearResult kResult, int kGroups, bool kHasTree = false>
void LaunchManyRow(const LinearWork& work, cudaStream_t stream) {
  const dim3 grid(NumRowTiles(work.rows, RowsOf(kGroups)), BlocksFor(work.packed.num_tiles, kTiles));
  if (grid.x == 0 || grid.y == 0) return;
  const LaunchShape shape = {grid, kThreads, size_t{kStages} * StageVectorsOf(kGroups) * 16, stream};
  Launch(shape, ManyRowKernel<T, kResult, kGroups, kHasTree>, work);
}

static_assert(RowsOf(4) == kManyRowTile);

}  // namespace

void ManyRowLinear(LinearWork work, cudaStream_t stream) {
  VisitHalf(work.dtype, [&]<typename T>() {
    const bool has_experts = work.rows.tiles != nullptr;
    switch (work.result) {
      case LinearResult::kSum:
        return work.num_leaves > 1 ? LaunchManyRow<T, LinearResult::kSum, 4, true>(work, stream)
                                   : LaunchManyRow<T, LinearResult::kSum, 8>(work, stream);
      case LinearResult::kGated:
        return has_experts ? LaunchManyRow<T, LinearResult::kGated, 4>(work, stream)
                           : LaunchManyRow<T, LinearResult::kGated, 8>(work, stream);
      case LinearResult::kLeaves:
        return LaunchManyRow<T, LinearResult::kLeaves, 4>(work, stream);
    }
  });
}

}  // namespace plumbline::cuda
