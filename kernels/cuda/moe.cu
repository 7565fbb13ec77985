// MoeMlp. A pair is a token with one of its experts, pair t K + i for token t. Pairs are sorted by expert on the
// device, the two products run over tiles of pairs of one expert, on grids for as many tiles as there can be; blocks
// without a tile leave. The leaves of the second product are kept apart, added over a token's experts, and combined: a
// pass over [pairs, leaves, D] in f32. The workspace bounds how many leaves are taken at once; that does not change the
// tree.
//
// Limited like the linears by the experts' bytes for generated rows and by the tensor cores for prompt rows, there
// joined by the traffic of the leaves, 8 D bytes a pair and leaf.
#include <algorithm>

#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/linear_work.cuh"
#include "kernels/cuda/padded_rows.cuh"
#include "kernels/cuda/types.cuh"

namespace plumbline {
namespace {

using namespace cuda;

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int64_t kMaxPairLeaves = 16384;  // in the workspace at once, D floats each

// Sum over the block; counts: [kWarps].
PLUMBLINE_DEVICE int BlockCount(int x, int* counts) {
#pragma unroll
  for (int step = kWarpSize / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  __syncthreads();
  if (threadIdx.x % kWarpSize == 0) counts[threadIdx.x / kWarpSize] = x;
  __syncthreads();
  int sum = 0;
  for (int w = 0; w < kWarps; ++w) sum += counts[w];
  return sum;
}

// Block e: the pairs of expert e in ascending order, at [begin[e], begin[e + 1]) of pairs.
__global__ void GroupKernel(int32_t* pairs, int32_t* begin, const int32_t* experts, int num_pairs) {
  int* counts = SharedMemory<int>();
  const int expert = blockIdx.x, lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  int before = 0;
  for (int p = threadIdx.x; p < num_pairs; p += kThreads) before += experts[p] < expert ? 1 : 0;
  int place = BlockCount(before, counts);
  if (threadIdx.x == 0) begin[expert] = place;
  for (int first = 0; first < num_pairs; first += kThreads) {
    const int p = first + threadIdx.x;
    const bool is_here = p < num_pairs && experts[p] == expert;
    const unsigned lanes = __ballot_sync(kAllLanes, is_here);
    __syncthreads();  // counts may be in use
    if (lane == 0) counts[warp] = __popc(lanes);
    __syncthreads();
    int own = place + __popc(lanes & ((1u << lane) - 1));
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) own += counts[w];
      place += counts[w];
    }
    if (is_here) pairs[own] = p;
  }
  if (expert + 1 == static_cast<int>(gridDim.x) && threadIdx.x == 0) begin[expert + 1] = place;
}

// One block: tiles of at most tile_rows pairs of one expert; those left over are empty.
__global__ void TileKernel(RowTile* tiles, int num_tiles, const int32_t* begin, int num_experts, int tile_rows) {
  const auto tiles_of = [&](int e) { return (begin[e + 1] - begin[e] + tile_rows - 1) / tile_rows; };
  int at = 0, e = 0;
  for (int own = threadIdx.x; own < num_experts; own += kThreads) {
    for (; e < own; ++e) at += tiles_of(e);
    for (int i = 0; i < tiles_of(own); ++i) {
      const int first = begin[own] + i * tile_rows, left = begin[own + 1] - first;
      tiles[at + i] = {own, first, left < tile_rows ? left : tile_rows};
    }
  }
  for (; e < num_experts; ++e) at += tiles_of(e);
  for (int i = at + threadIdx.x; i < num_tiles; i += kThreads) tiles[i] = {0, 0, 0};
}

// out[t, d] = the tree over num_leaves leaves of the sum over the token's experts.
__global__ void CombineKernel(float* out, const float* leaves, const float* weights, int top_k, int num_leaves,
                              int64_t hidden, int64_t count) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const int64_t token = i / hidden, d = i % hidden;
  float sum[1][4] = {};  // one of them is in use
  TreeCounter<1> tree;
  for (int leaf = 0; leaf < num_leaves; ++leaf) {
    sum[0][0] = 0.0f;
    for (int k = 0; k < top_k; ++k) {
      const int64_t pair = token * top_k + k;
      sum[0][0] += weights[pair] * leaves[(pair * num_leaves + leaf) * hidden + d];
    }
    tree.Add(sum, leaf, num_leaves);
  }
  out[i] = sum[0][0];
}

// Where the intermediates of the op lie: bytes from the start of the workspace.
struct Layout {
  size_t total = 0;
  size_t Place(int64_t num_bytes) {
    const size_t at = total;
    total += (static_cast<size_t>(num_bytes) + 255) / 256 * 256;
    return at;
  }
};

}  // namespace

void CudaOps::DoMoeMlp(const MoeMlpArgs& args) {
  const LinearShape &up = args.gate_up_shape, &down = args.down_shape;
  const int64_t num_tokens = args.x.dim(0), top_k = args.experts.dim(1), num_experts = args.gate_up.dim(0);
  const int64_t hidden = down.n, inner_columns = down.k, size = static_cast<int64_t>(SizeOf(up.dtype));
  const int64_t num_generated = std::clamp<int64_t>(args.num_generated, 0, num_tokens);

  // The two roles use the same memory one after the other.
  const int64_t max_pairs = std::max(num_generated, num_tokens - num_generated) * top_k;
  int leaves_at_once = down.num_leaves;
  while (leaves_at_once > 1 && max_pairs * leaves_at_once > kMaxPairLeaves) leaves_at_once /= 2;
  const int num_passes = down.num_leaves / leaves_at_once;
  const int64_t max_tiles = max_pairs / kFewRowTile + std::min(num_experts, max_pairs);
  const ConstTensor inner_like(nullptr, up.dtype, {max_pairs, inner_columns});
  Layout layout;
  const size_t padded_at = layout.Place(PaddedBytes(args.x, up)), begin_at = layout.Place((num_experts + 1) * 4);
  const size_t pairs_at = layout.Place(max_pairs * 4), tiles_at = layout.Place(max_tiles * sizeof(RowTile));
  const size_t inner_at = layout.Place(max_pairs * inner_columns * size);
  const size_t padded_inner_at = layout.Place(PaddedBytes(inner_like, down));
  const size_t leaves_at = layout.Place(max_pairs * leaves_at_once * hidden * 4);
  const size_t roots_at = layout.Place(num_passes > 1 ? max_pairs / top_k * num_passes * hidden * 4 : 0);
  std::byte* memory = static_cast<std::byte*>(workspace_.Take(layout.total));
  auto* begin = reinterpret_cast<int32_t*>(memory + begin_at);
  auto* pairs = reinterpret_cast<int32_t*>(memory + pairs_at);
  auto* tiles = reinterpret_cast<RowTile*>(memory + tiles_at);
  auto* leaves = reinterpret_cast<float*>(memory + leaves_at);
  auto* roots = reinterpret_cast<float*>(memory + roots_at);
  const ConstTensor x = PaddedRows(args.x, up, memory + padded_at, stream());

  for (const Role role : {Role::kGenerated, Role::kPrompt}) {
    const int64_t first = role == Role::kGenerated ? 0 : num_generated;
    const int64_t tokens = (role == Role::kGenerated ? num_generated : num_tokens) - first, num_pairs = tokens * top_k;
    if (tokens == 0) continue;
    const int tile_rows = up.dtype == DType::kF32 ? kF32RowTile : role == Role::kGenerated ? kFewRowTile : kManyRowTile;
    const int num_tiles = static_cast<int>(num_pairs / tile_rows + std::min(num_experts, num_pairs));
    Launch({static_cast<unsigned>(num_experts), kThreads, kWarps * sizeof(int), stream()}, GroupKernel, pairs, begin,
           args.experts.as<int32_t>() + first * top_k, static_cast<int>(num_pairs));
    Launch({1, kThreads, 0, stream()}, TileKernel, tiles, num_tiles, begin, static_cast<int>(num_experts), tile_rows);

    LinearWork work = WorkOf(up, LinearResult::kGated);
    work.weight = args.gate_up.raw();
    work.expert_bytes = args.gate_up.dim(1);
    work.x = x.At(first, 0);
    work.x_stride = x.row_stride();
    work.rows = {num_pairs, num_tiles, tiles, pairs, static_cast<int>(top_k)};
    work.rounded = memory + inner_at;
    work.num_rounded = work.rounded_stride = inner_columns;
    RunLinear(work, role, stream());

    const ConstTensor inner =
        PaddedRows({memory + inner_at, up.dtype, {num_pairs, inner_columns}}, down, memory + padded_inner_at, stream());
    work = WorkOf(down, LinearResult::kLeaves);
    work.weight = args.down.raw();
    work.expert_bytes = args.down.dim(1);
    work.x = inner.raw();
    work.x_stride = inner.row_stride();
    work.rows = {num_pairs, num_tiles, tiles, pairs, 1};
    work.out = leaves;
    work.num_leaves = leaves_at_once;
    const int64_t count = tokens * hidden;
    float* out = args.out.as<float>() + first * hidden;
    for (int pass = 0; pass < num_passes; ++pass) {
      work.first_leaf = pass * leaves_at_once;
      RunLinear(work, role, stream());
      float* root = num_passes > 1 ? roots + pass * count : out;
      Launch({BlocksFor(count, kThreads), kThreads, 0, stream()}, CombineKernel, root, leaves,
             args.weights.as<float>() + first * top_k, static_cast<int>(top_k), leaves_at_once, hidden, count);
    }
    if (num_passes > 1) {
      const ConstTensor partials(roots, DType::kF32, {num_passes, count});
      DoTreeSum({.out = Tensor(out, DType::kF32, {count}), .partials = partials});
    }
  }
}

}  // namespace plumbline
