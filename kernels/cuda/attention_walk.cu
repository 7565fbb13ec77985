// Attention of the sequences with many rows: a block takes a tile of query rows of one KV head and walks its segments in
// ascending order, segment and total in registers. Limited by FLOP: 4 T L H per query head as ops.h counts them, half of
// that causally, of which the second half is paid twice (two 16-bit weights); 55 to 60 % of the mma.sync rate expected, so
// 35 to 40 % counted.
#include "kernels/cuda/attention_tile.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/types.cuh"

namespace plumbline::cuda {
namespace {

// The sequence and tile of the number-th tile of kRows query rows of the long sequences; sequence -1: there are fewer tiles.
struct TileOfSequence {
  int sequence, tile, num_tiles;
};
template <int kRows, typename T>
PLUMBLINE_DEVICE TileOfSequence FindTile(const AttentionInput<T>& input, int number) {
  const int lane = threadIdx.x % kWarpSize;
  for (int first = 0; first < input.num_sequences; first += kWarpSize) {
    const int s = first + lane;
    const int tokens = s < input.num_sequences ? input.num_tokens(s) : 0;
    const int count = tokens > input.short_tokens ? (tokens * input.group() + kRows - 1) / kRows : 0;
    int end = count;
#pragma unroll
    for (int step = 1; step < kWarpSize; step *= 2) {
      const int before = __shfl_up_sync(kAllLanes, end, step);
      if (lane >= step) end += before;
    }
    const unsigned after = __ballot_sync(kAllLanes, end > number);
    if (after != 0) {
      const int owner = __ffs(static_cast<int>(after)) - 1;
      const int num_tiles = __shfl_sync(kAllLanes, count, owner);
      return {first + owner, number - (__shfl_sync(kAllLanes, end, owner) - num_tiles), num_tiles};
    }
    number -= __shfl_sync(kAllLanes, end, kWarpSize - 1);
  }
  return {-1, 0, 0};
}

template <typename T, int kDim, int kRowTiles, int kParts>
__global__ void __launch_bounds__(kWarpSize* kRowTiles* kParts) WalkKernel(AttentionInput<T> input) {
  using Tile = AttentionTile<T, kDim, kRowTiles, kParts>;
  const TileOfSequence found = FindTile<Tile::kRows>(input, blockIdx.x);
  if (found.sequence < 0) return;
  const int s = found.sequence, group = input.group();
  // The last tiles see most keys: first.
  const QueryTile rows = {.row_begin = input.row_begin[s],
                          .start = input.start[s],
                          .num_rows = input.num_tokens(s) * group,
                          .kv_head = static_cast<int>(blockIdx.y),
                          .group = group,
                          .first = (found.num_tiles - 1 - found.tile) * Tile::kRows};
  Tile tile(input, rows, s);
  typename Tile::Segment total = {};
  total.max[0] = total.max[1] = -INFINITY;
  tile.Walk(0, 1, tile.num_segments(), [&](int, const typename Tile::Segment& segment) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Merge merge(total.max[half], segment.max[half]);
      total.max[half] = merge.max;
      total.sum[half] = merge(total.sum[half], segment.sum[half]);
#pragma unroll
      for (int j = 0; j < Tile::kColumnTiles; ++j) {
        total.values[j][2 * half] = merge(total.values[j][2 * half], segment.values[j][2 * half]);
        total.values[j][2 * half + 1] = merge(total.values[j][2 * half + 1], segment.values[j][2 * half + 1]);
      }
    }
  });
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (!rows.Has(tile.row(half))) continue;
    const QueryRow query = tile.Query(half);
    const float inverse = 1.0f / total.sum[half];
    T* out = input.out + query.t * input.out_stride + int64_t{query.head} * input.head_dim;
#pragma unroll
    for (int j = 0; j < Tile::kColumnTiles; ++j) {
      const int column = tile.column(j);
      if (column >= input.head_dim) continue;
      const float* gate = GateOf(input, query.t, query.head, column);
      out[column] = Finish<T>(total.values[j][2 * half], inverse, gate);
      out[column + 1] = Finish<T>(total.values[j][2 * half + 1], inverse, gate == nullptr ? nullptr : gate + 1);
    }
  }
}

// Whether the device gives a block that much shared memory.
bool HasShared(const void* kernel, size_t num_bytes) {
  const bool has =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(num_bytes)) == cudaSuccess;
  if (!has) cudaGetLastError();
  return has;
}

}  // namespace

template <typename T>
void LaunchWalkedAttention(const AttentionInput<T>& input, int num_multiprocessors, cudaStream_t stream) {
  const int64_t query_rows = int64_t{input.num_rows} * (input.heads / input.kv_heads);
  const int64_t max_long = std::min(input.num_sequences, input.num_rows / (input.short_tokens + 1));
  VisitHeadDim(input.head_dim, [&]<int kDim>() {
    constexpr int kParts = kDim == 256 ? 2 : 1;  // so that segment and total fit into registers
    const auto launch = [&]<int kRowTiles>() {
      using Tile = AttentionTile<T, kDim, kRowTiles, kParts>;
      const dim3 grid(static_cast<unsigned>(query_rows / Tile::kRows + max_long), static_cast<unsigned>(input.kv_heads));
      Launch({grid, Tile::kThreads, Tile::kSharedBytes, stream}, WalkKernel<T, kDim, kRowTiles, kParts>, input);
    };
    // Fewer rows in a block where there are too few blocks, or too little shared memory; the bits are the same.
    const auto large = WalkKernel<T, kDim, 4, kParts>;
    constexpr size_t kLargeBytes = AttentionTile<T, kDim, 4, kParts>::kSharedBytes;
    const bool fills_device = query_rows * input.kv_heads >= int64_t{4 * kTileRows} * num_multiprocessors;
    if (fills_device && HasShared(reinterpret_cast<const void*>(large), kLargeBytes)) {
      launch.template operator()<4>();
    } else {
      launch.template operator()<2>();
    }
  });
}

template void LaunchWalkedAttention<Bf16>(const AttentionInput<Bf16>&, int, cudaStream_t);
template void LaunchWalkedAttention<F16>(const AttentionInput<F16>&, int, cudaStream_t);

}  // namespace plumbline::cuda
