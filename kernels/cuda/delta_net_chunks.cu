// The chunks of prompt rows in order, over 32 columns of a head's state per block: columns of the state know nothing of each
// other.
//   R = V - D K S;  X = solution R;  O = D Q S + weights X;  S <- e^G_last S + K^T diag(e^(G_last - G)) X
// (delta_net_step.h). The state stays in registers, as the sums of the last product. Every operand is the sum of two bf16
// numbers; the product of the two small parts is left out. Operands A come in the order of the registers, straight from
// global memory, two tiles ahead of their use; operands B (S, R, X) lie in shared memory, padded so that ldmatrix meets no
// conflicts; V is copied a chunk ahead.
// Limited by tensor cores: 1400 products of 16 x 8 x 16 per chunk at P = 128, of which a warp gets up to 400, and nearly as
// much by the operands' way out of L2 (116 KiB per chunk); 60 % of the rate of mma.sync is expected.
#include <algorithm>

#include "kernels/cuda/delta_net_rows.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/sequence_runs.cuh"
#include "kernels/cuda/types.cuh"

namespace plumbline::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kBlocksPerMultiprocessor = 2;
constexpr int kColumns = 32;  // of a block
constexpr int kColumnTiles = kColumns / 8;
constexpr int kStride = kColumns + 8;  // of operand B, in halves

// An operand B in shared memory: [rows, kStride] rounded, then as much of what the rounding lost.
template <int kRows>
struct SplitRows {
  uint16_t rounded[kRows * kStride], lost[kRows * kStride];
};

// Two neighbours of a row.
template <int kRows>
PLUMBLINE_DEVICE void StorePair(SplitRows<kRows>& rows, int row, int column, float x, float y) {
  const uint32_t rounded = Pack<Bf16>(x, y);
  reinterpret_cast<uint32_t*>(rows.rounded)[(row * kStride + column) / 2] = rounded;
  reinterpret_cast<uint32_t*>(rows.lost)[(row * kStride + column) / 2] =
      Pack<Bf16>(x - LowOf<Bf16>(rounded), y - HighOf<Bf16>(rounded));
}

// A row tile's sums [16, kColumns] as a warp holds them.
using TileSums = float[kColumnTiles][4];

template <int kRows>
PLUMBLINE_DEVICE void StoreSums(SplitRows<kRows>& rows, int tile, const TileSums& sums, float upper, float lower) {
  const int g = threadIdx.x % kWarpSize / 4, t = threadIdx.x % 4;
#pragma unroll
  for (int n = 0; n < kColumnTiles; ++n) {
    StorePair(rows, tile * 16 + g, n * 8 + 2 * t, sums[n][0] * upper, sums[n][1] * upper);
    StorePair(rows, tile * 16 + g + 8, n * 8 + 2 * t, sums[n][2] * lower, sums[n][3] * lower);
  }
}

// Rows [16 l, 16 l + 16) of an operand B.
PLUMBLINE_DEVICE void LoadRows(uint32_t (&b)[kColumnTiles][2], const uint16_t* rows, int l) {
  const int lane = threadIdx.x % kWarpSize;
  const uint16_t* row = rows + (l * 16 + lane % 16) * kStride + lane / 16 * 8;
#pragma unroll
  for (int n = 0; n < kColumnTiles; n += 2) {
    uint32_t r[4];
    LoadMatricesTransposed(r, row + n * 8);
    b[n][0] = r[0];
    b[n][1] = r[1];
    b[n + 1][0] = r[2];
    b[n + 1][1] = r[3];
  }
}

// An operand A of kTiles row tiles, for this warp: tile l of row tile m is at tiles[m] + l * kTileVectors, l < depths[m] <=
// kDepth.
template <int kDepth, int kTiles>
struct TileRows {
  static constexpr int kAhead = kTiles > 2 ? 1 : 2;  // tiles under way
  const uint4* tiles[kTiles];
  int depths[kTiles];
  uint4 ahead[kAhead][kTiles][2];

  PLUMBLINE_DEVICE void Load(int l) {
    const int lane = threadIdx.x % kWarpSize;
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      if (l >= depths[m]) continue;
      ahead[l % kAhead][m][0] = tiles[m][l * kTileVectors + lane];
      ahead[l % kAhead][m][1] = tiles[m][l * kTileVectors + kWarpSize + lane];
    }
  }
  // As early as may be: before the barrier that the product waits for.
  PLUMBLINE_DEVICE void LoadFirst() {
#pragma unroll
    for (int l = 0; l < (kAhead < kDepth ? kAhead : kDepth); ++l) Load(l);
  }
};

// sums += A B, once LoadFirst has been called.
template <int kDepth, int kTiles, int kRows>
PLUMBLINE_DEVICE void MultiplyAdd(TileSums (&sums)[kTiles], TileRows<kDepth, kTiles>& a, const SplitRows<kRows>& b) {
  constexpr int kAhead = TileRows<kDepth, kTiles>::kAhead;
#pragma unroll
  for (int l = 0; l < kDepth; ++l) {
    uint4 now[kTiles][2];
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      now[m][0] = a.ahead[l % kAhead][m][0];
      now[m][1] = a.ahead[l % kAhead][m][1];
    }
    if (l + kAhead < kDepth) a.Load(l + kAhead);
    uint32_t rows[2][kColumnTiles][2];
    LoadRows(rows[0], b.rounded, l);
    LoadRows(rows[1], b.lost, l);
#pragma unroll
    for (int part = 0; part < 3; ++part) {  // rounded x rounded, rounded x lost, lost x rounded
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        if (l >= a.depths[m]) continue;
        const uint4 x = now[m][part / 2];
        const uint32_t fragment[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
        for (int n = 0; n < kColumnTiles; ++n) Mma16816<Bf16>(sums[m][n], fragment, rows[part % 2][n]);
      }
    }
  }
}

// The n-th sequence that has prompt rows, -1 where there are fewer. All threads of a warp call it.
PLUMBLINE_DEVICE int NthPrompt(const int32_t* num_prompt_rows, int num_sequences, int n) {
  const int lane = threadIdx.x % kWarpSize;
  for (int first = 0; first < num_sequences; first += kWarpSize) {
    unsigned prompts = __ballot_sync(kAllLanes, first + lane < num_sequences && num_prompt_rows[first + lane] > 0);
    const int num = __popc(prompts);
    if (n >= num) {
      n -= num;
      continue;
    }
    for (; n > 0; --n) prompts &= prompts - 1;
    return first + __ffs(static_cast<int>(prompts)) - 1;
  }
  return -1;
}

constexpr int kValueStride = kColumns + 8;  // floats: no conflicts where lanes read pairs

template <int kKeyTiles>
struct WalkMemory {
  float values[kChunkTokens * kValueStride];  // V of the next chunk
  SplitRows<16 * kKeyTiles> state;
  SplitRows<kChunkTokens> r, x, decayed_x;
};

// What a block has to do.
struct WalkTask {
  int sequence, head, column;  // the first of its columns
};

// Starts to copy V of the next rows, a chunk of them at most, zeros from there on.
PLUMBLINE_DEVICE void CopyValues(const DeltaNetStep& step, const WalkTask& task, int64_t row, int num_rows, float* values) {
  if (num_rows <= 0) return;
  const float* from = ValueAt(step, row, task.head) + task.column;
  const int64_t stride = ConvStride(step);
  const int num_columns = step.value_dim - task.column;
  const bool in_fours = stride % 4 == 0 && step.value_dim % 4 == 0 && reinterpret_cast<uintptr_t>(step.conv) % 16 == 0;
  for (int i = threadIdx.x; i < kChunkTokens * kColumns / 4; i += kThreads) {
    const int r = i / (kColumns / 4), column = i % (kColumns / 4) * 4;
    float* to = values + r * kValueStride + column;
    if (in_fours) {
      CopyAsync16(to, from + r * stride + column, r < num_rows && column < num_columns);
    } else {
#pragma unroll
      for (int c = 0; c < 4; ++c) to[c] = r < num_rows && column + c < num_columns ? from[r * stride + column + c] : 0.0f;
    }
  }
  CommitCopies();
}

// Warps 0 and 1 take the rows of K, 2 and 3 those of Q: row tiles 0 and 3, or 1 and 2, which are equally far below the
// diagonal.
template <int kKeyTiles>
PLUMBLINE_DEVICE void Walk(const DeltaNetStep& step, const ChunkOperands& operands, const WalkTask& task,
                           WalkMemory<kKeyTiles>& memory) {
  constexpr int kStateTiles = kKeyTiles < 4 ? 1 : kKeyTiles / 4;  // of a warp
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize, g = lane / 4, t = lane % 4;
  const bool has_keys = warp < 2, has_state = warp * kStateTiles < kKeyTiles;
  const int row_tiles[2] = {warp % 2, 3 - warp % 2};
  const int dim = step.value_dim, num_prompt_rows = step.num_prompt_rows[task.sequence];
  const int key_head = task.head / (step.num_heads / step.num_key_heads);
  const int64_t begin = step.row_begin[task.sequence], first_chunk = FirstRunOf<kChunkTokens>(step.row_begin, task.sequence);
  const bool is_fresh = step.start[task.sequence] == 0;

  TileSums state[kStateTiles];
  float* state_of_head = StateOf(step, task.sequence, task.head) + task.column;
  // element(key, column, x) for what this lane holds of the state and exists
  const auto for_state = [&](const auto& element) {
#pragma unroll
    for (int i = 0; i < kStateTiles; ++i) {
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int key = (warp * kStateTiles + i) * 16 + g + e / 2 * 8, column = n * 8 + 2 * t + e % 2;
          if (key < step.key_dim && task.column + column < dim) element(int64_t{key} * dim + column, state[i][n][e]);
        }
      }
    }
  };
  const auto share_state = [&] {
    if (!has_state) return;
#pragma unroll
    for (int i = 0; i < kStateTiles; ++i) StoreSums(memory.state, warp * kStateTiles + i, state[i], 1.0f, 1.0f);
  };
#pragma unroll
  for (int i = 0; i < kStateTiles; ++i) {
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) state[i][n][e] = 0;
    }
  }
  if (!is_fresh) for_state([&](int64_t at, float& x) { x = state_of_head[at]; });
  share_state();
  CopyValues(step, task, begin, num_prompt_rows, memory.values);

  for (int first = 0; first < num_prompt_rows; first += kChunkTokens) {
    const int64_t chunk = first_chunk + first / kChunkTokens;
    const int64_t keys_at = (chunk * step.num_key_heads + key_head) * kChunkTiles * kKeyTiles * kTileVectors;
    const int64_t head_at = chunk * step.num_heads + task.head, lower_at = head_at * kLowerTiles * kTileVectors;
    const float2* decays = operands.decays + head_at * kChunkTokens;
    const int count = min(kChunkTokens, num_prompt_rows - first);
    float decay[2][2];
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      decay[m][0] = decays[row_tiles[m] * 16 + g].x;
      decay[m][1] = decays[row_tiles[m] * 16 + g + 8].x;
    }
    const uint4* rows = (has_keys ? operands.keys : operands.queries) + keys_at;
    TileRows<kKeyTiles, 2> keys_or_queries = {
        {rows + row_tiles[0] * kKeyTiles * kTileVectors, rows + row_tiles[1] * kKeyTiles * kTileVectors},
        {kKeyTiles, kKeyTiles}};
    keys_or_queries.LoadFirst();
    WaitForCopies<0>();
    __syncthreads();  // the state and V are there
    TileSums sums[2] = {};
    MultiplyAdd(sums, keys_or_queries, memory.state);
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float &x = sums[m][n][2 * half], &y = sums[m][n][2 * half + 1];
          x *= decay[m][half];
          y *= decay[m][half];
          if (!has_keys) continue;
          const int at = (row_tiles[m] * 16 + g + half * 8) * kValueStride + n * 8 + 2 * t;
          const float2 v = *reinterpret_cast<const float2*>(memory.values + at);
          x = v.x - x;
          y = v.y - y;
        }
      }
      if (has_keys) StoreSums(memory.r, row_tiles[m], sums[m], 1.0f, 1.0f);
    }
    TileRows<kChunkTiles, 1> solution = {{operands.solution + lower_at + LowerTile(warp, 0) * kTileVectors}, {warp + 1}};
    solution.LoadFirst();
    __syncthreads();  // R is there, V no longer needed
    CopyValues(step, task, begin + first + kChunkTokens, num_prompt_rows - first - kChunkTokens, memory.values);
    TileSums x[1] = {};
    MultiplyAdd(x, solution, memory.r);
    StoreSums(memory.x, warp, x[0], 1.0f, 1.0f);
    StoreSums(memory.decayed_x, warp, x[0], decays[warp * 16 + g].y, decays[warp * 16 + g + 8].y);

    TileRows<kChunkTiles, kStateTiles> keys_transposed = {};
#pragma unroll
    for (int i = 0; i < kStateTiles; ++i) {
      keys_transposed.tiles[i] = operands.keys_transposed + keys_at + (warp * kStateTiles + i) * kChunkTiles * kTileVectors;
      keys_transposed.depths[i] = has_state ? kChunkTiles : 0;
    }
    const uint4* lower = operands.weights + lower_at;
    TileRows<kChunkTiles, 2> weights = {
        {lower + LowerTile(row_tiles[0], 0) * kTileVectors, lower + LowerTile(row_tiles[1], 0) * kTileVectors},
        {row_tiles[0] + 1, row_tiles[1] + 1}};
    if (has_keys) {
      keys_transposed.LoadFirst();
    } else {
      weights.LoadFirst();
    }
    __syncthreads();  // X is there
    if (!has_keys) {
      MultiplyAdd(sums, weights, memory.x);
      keys_transposed.LoadFirst();
#pragma unroll
      for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int row = row_tiles[m] * 16 + g + half * 8;
          if (row >= count) continue;
          float* out = step.out + ((begin + first + row) * step.num_heads + task.head) * dim + task.column;
#pragma unroll
          for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
              const int column = n * 8 + 2 * t + e;
              if (task.column + column < dim) out[column] = sums[m][n][2 * half + e];
            }
          }
        }
      }
    }
    if (has_state) {
      const float decay_of_chunk = decays[kChunkTokens - 1].x;
#pragma unroll
      for (int i = 0; i < kStateTiles; ++i) {
#pragma unroll
        for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
          for (int e = 0; e < 4; ++e) state[i][n][e] *= decay_of_chunk;
        }
      }
      MultiplyAdd(state, keys_transposed, memory.decayed_x);
      share_state();
    }
  }
  for_state([&](int64_t at, float x) { state_of_head[at] = x; });
}

template <int kKeyTiles>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor) WalkKernel(DeltaNetStep step, ChunkOperands operands) {
  WalkMemory<kKeyTiles>& memory = *SharedMemory<WalkMemory<kKeyTiles>>();
  const int slices = (step.value_dim + kColumns - 1) / kColumns;
  for (int64_t index = blockIdx.x; index < int64_t{step.num_sequences} * step.num_heads * slices; index += gridDim.x) {
    const int64_t head = index / slices;
    const int sequence = NthPrompt(step.num_prompt_rows, step.num_sequences, static_cast<int>(head / step.num_heads));
    if (sequence < 0) return;
    Walk(step, operands, {sequence, static_cast<int>(head % step.num_heads), static_cast<int>(index % slices) * kColumns},
         memory);
  }
}

template <int kKeyTiles>
void LaunchWalk(const DeltaNetStep& step, const ChunkOperands& operands, int num_multiprocessors, cudaStream_t stream) {
  const int64_t tasks = int64_t{step.num_sequences} * step.num_heads * BlocksFor(step.value_dim, kColumns);
  const int64_t blocks = std::min<int64_t>(tasks, num_multiprocessors * kBlocksPerMultiprocessor);
  Launch({static_cast<unsigned>(blocks), kThreads, sizeof(WalkMemory<kKeyTiles>), stream}, WalkKernel<kKeyTiles>, step,
         operands);
}

}  // namespace

void WalkChunks(const DeltaNetStep& step, const ChunkOperands& operands, int num_multiprocessors, cudaStream_t stream) {
  switch (PaddedKeyTiles(step.key_dim)) {
    case 2:
      return LaunchWalk<2>(step, operands, num_multiprocessors, stream);
    case 4:
      return LaunchWalk<4>(step, operands, num_multiprocessors, stream);
    case 8:
      return LaunchWalk<8>(step, operands, num_multiprocessors, stream);
    default:
      return LaunchWalk<16>(step, operands, num_multiprocessors, stream);
  }
}

}  // namespace plumbline::cuda
