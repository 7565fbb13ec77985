// Products of generated rows: a block streams two tiles of the weight past at most 16 rows.
//
// Order of a sum: a leaf is cut into 8 slices of whole steps of 32 columns, slice i being steps [i s / 8, (i + 1) s /
// 8) of its s; a slice is one accumulation in ascending k, the slices of a leaf combine in the balanced tree, then the
// leaves. So the cut is a function of leaf_k alone. The 8 warps of a block take equal runs of slices, subtrees of the
// one tree, and combine at the end.
//
// Limited by the bytes of the weight: a warp keeps two or three steps (2 KiB each) of its own stream under way, a block
// of 8 warps 32 KiB and more, two blocks a multiprocessor. Expected: 85-90 % of memory bandwidth up to 16 rows. Further
// tiles of rows run beside the first (they are neighbours in the grid) and find the weight in L2, whose bandwidth then
// limits.
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/linear_work.cuh"
#include "kernels/cuda/types.cuh"

namespace plumbline::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kSlices = 8;  // of a leaf
constexpr int kTiles = 2;   // of the weight
constexpr int kStages = 3;
constexpr int kXVectors = kFewRowTile * 4;
constexpr int kStageVectors = kTiles * kStepVectors + kXVectors;
constexpr int kSumStride = kTiles * kTileRows + 4;  // a warp's 8 x 4 lanes store to 32 banks
constexpr size_t kRingBytes = size_t{kWarps} * kStages * kStageVectors * 16;
constexpr size_t kSumBytes = size_t{kWarps} * kFewRowTile * kSumStride * sizeof(float);
constexpr size_t kSharedBytes = kRingBytes > kSumBytes ? kRingBytes : kSumBytes;

// First step of slice s, counted through the leaves.
PLUMBLINE_DEVICE int SliceBegin(int s, int leaf_steps) {
  return s / kSlices * leaf_steps + s % kSlices * leaf_steps / kSlices;
}

// One warp's stream through its steps: weight and x to its part of the ring.
template <typename T>
struct Stream {
  const uint4* weight;  // this lane's, of step 0 of the first tile
  int64_t tile_vectors;
  bool has_second_tile;
  const T* x[2];  // this lane's rows
  bool has_row[2];
  uint4* ring;

  PLUMBLINE_DEVICE void Start(int step, int stage) const {
    const int lane = threadIdx.x % kWarpSize;
    uint4* to = ring + stage * kStageVectors;
    const uint4* from = weight + int64_t{step} * kStepVectors;
#pragma unroll
    for (int i = 0; i < kTiles * 2; ++i) {
      CopyAsync16(to + i * kWarpSize + lane, from + i / 2 * tile_vectors + i % 2 * kWarpSize, i < 2 || has_second_tile);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int vector = kTiles * kStepVectors + XVector(lane / 4 + 8 * i, lane % 4);
      CopyAsync16(to + vector, x[i] + int64_t{step} * kStepColumns, has_row[i]);
    }
  }
};

// The tree over the sums of warps [first, first + count) at one place.
PLUMBLINE_DEVICE float TreeOfWarps(const float* sums, int first, int count) {
  float x[kWarps];
#pragma unroll
  for (int w = 0; w < kWarps; ++w) x[w] = w < count ? sums[(first + w) * kFewRowTile * kSumStride] : 0.0f;
#pragma unroll
  for (int width = kWarps / 2; width > 0; width /= 2) {  // places past count hold zeros and go unused
#pragma unroll
    for (int i = 0; i < kWarps / 2; ++i) {
      if (i < width && width < count) x[i] = x[2 * i] + x[2 * i + 1];
    }
  }
  return x[0];
}

template <typename T, LinearResult kResult>
__global__ void __launch_bounds__(kWarps* kWarpSize, 2) FewRowKernel(LinearWork work) {
  const RowTile tile = TileOfBlock(work.rows, kFewRowTile);
  if (tile.count <= 0) return;
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int leaf_steps = static_cast<int>(work.packed.leaf_steps), num_leaves = work.num_leaves;
  const int64_t first_tile = int64_t{blockIdx.y} * kTiles, first_step = int64_t{work.first_leaf} * leaf_steps;

  Stream<T> stream;
  stream.tile_vectors = work.packed.num_steps * kStepVectors;
  stream.weight =
      WeightOf<uint4>(work, tile.expert) + first_tile * stream.tile_vectors + first_step * kStepVectors + lane;
  stream.has_second_tile = first_tile + 1 < work.packed.num_tiles;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = lane / 4 + 8 * i;
    stream.has_row[i] = row < tile.count;
    stream.x[i] = XRowAt<T>(work, tile.first + (stream.has_row[i] ? row : 0)) + first_step * kStepColumns + lane % 4 * 8;
  }
  stream.ring = SharedMemory<uint4>() + warp * kStages * kStageVectors;

  const int first_slice = warp * num_leaves;  // of num_leaves * kSlices
  int step = SliceBegin(first_slice, leaf_steps);
  const int last_step = SliceBegin(first_slice + num_leaves, leaf_steps);
  int next = step, next_stage = 0, stage = 0;
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) {
    if (next < last_step) stream.Start(next, next_stage);
    CommitCopies();
    ++next, ++next_stage;
  }

  const bool has_second_half = tile.count > 8;
  float sums[kTiles * 2][4] = {};  // [tile, half of the rows]
  TreeCounter<kTiles * 2> tree;
  for (int slice = 0; slice < num_leaves; ++slice) {
    const int end = SliceBegin(first_slice + slice + 1, leaf_steps);
    for (; step < end; ++step) {
      WaitForCopies<kStages - 2>();
      __syncwarp();  // the stage is whole, and the one before it has been read by all lanes
      if (next < last_step) stream.Start(next, next_stage);
      CommitCopies();
      ++next;
      if (++next_stage == kStages) next_stage = 0;
      const uint4* weight = stream.ring + stage * kStageVectors;
      if (++stage == kStages) stage = 0;
      uint32_t a[kTiles][2][4];
#pragma unroll
      for (int i = 0; i < kTiles * 2; ++i) LoadWeight(a[i / 2][i % 2], weight + i * kWarpSize);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (half == 1 && !has_second_half) break;
        uint32_t b[2][2];
        LoadX(b, weight + kTiles * kStepVectors, half * 8);
#pragma unroll
        for (int i = 0; i < kTiles; ++i) {
          Mma16816<T>(sums[i * 2 + half], a[i][0], b[0]);
          Mma16816<T>(sums[i * 2 + half], a[i][1], b[1]);
        }
      }
    }
    tree.Add(sums, slice, num_leaves);
  }

  WaitForCopies<0>();
  __syncthreads();  // the ring is done with: it holds the warps' sums now, [warp][row][n]
  float* all = SharedMemory<float>();
#pragma unroll
  for (int i = 0; i < kTiles * 2; ++i) {
    float* to = all + (warp * kFewRowTile + i % 2 * 8 + lane % 4 * 2) * kSumStride + i / 2 * kTileRows + lane / 4;
    to[0] = sums[i][0], to[kSumStride] = sums[i][1];
    to[8] = sums[i][2], to[kSumStride + 8] = sums[i][3];
  }
  __syncthreads();
  for (int r = warp; r < tile.count; r += kWarps) {
    const float* sum = all + r * kSumStride;
    const int64_t row = RowAt(work.rows, tile.first + r);
    if constexpr (kResult == LinearResult::kGated) {
      const int column = lane % 16, place = column / 8 * kTileRows + column % 8;
      if (lane < 16) {
        const float gate = TreeOfWarps(sum + place, 0, kWarps), up = TreeOfWarps(sum + place + 8, 0, kWarps);
        StoreGated<T>(work, row, first_tile * 8 + column, gate, up);
      }
    } else if constexpr (kResult == LinearResult::kSum) {
      StoreSum<T>(work, row, first_tile * kTileRows + lane, TreeOfWarps(sum + lane, 0, kWarps));
    } else {
      const int warps_of_leaf = kWarps / num_leaves;
      for (int leaf = 0; leaf < num_leaves; ++leaf) {
        const float root = TreeOfWarps(sum + lane, leaf * warps_of_leaf, warps_of_leaf);
        StoreLeaf(work, row, leaf, first_tile * kTileRows + lane, root);
      }
    }
  }
}

template <typename T, LinearResult kResult>
void LaunchFewRow(const LinearWork& work, cudaStream_t stream) {
  const dim3 grid(NumRowTiles(work.rows, kFewRowTile), BlocksFor(work.packed.num_tiles, kTiles));
  if (grid.x == 0 || grid.y == 0) return;
  Launch({grid, kWarps * kWarpSize, kSharedBytes, stream}, FewRowKernel<T, kResult>, work);
}

}  // namespace

void FewRowLinear(LinearWork work, cudaStream_t stream) {
  VisitHalf(work.dtype, [&]<typename T>() {
    switch (work.result) {
      case LinearResult::kSum:
        return LaunchFewRow<T, LinearResult::kSum>(work, stream);
      case LinearResult::kGated:
        return LaunchFewRow<T, LinearResult::kGated>(work, stream);
      case LinearResult::kLeaves:
        return LaunchFewRow<T, LinearResult::kLeaves>(work, stream);
    }
  });
}

}  // namespace plumbline::cuda
