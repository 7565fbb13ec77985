// What the chunks of prompt rows need of q, k and the gates alone, for all chunks at once: a block per chunk and key head.
// With G the running sum of the log decays in the chunk, on and below the diagonal:
//   M_ij = beta_i (k_i . k_j) e^(G_i - G_j), i > j;  solution = (I + M)^-1 diag(beta)
//   weights_ij = (q_i . k_j) e^(G_i - G_j)
// (I + M)^-1 by forward substitution in f32, one column per thread; its elements are below 1, as those of M. Row i of each
// depends on rows up to i alone; a short chunk is filled up with rows of zeros, which have beta = 0 and no decay. Limited by
// the bytes it writes, 96 KiB per key head and 20 KiB per value head of a chunk at P = 128, and by the 64 dependent steps of
// the substitution.
#include "kernels/cuda/delta_net_rows.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/sequence_runs.cuh"
#include "kernels/cuda/types.cuh"

namespace plumbline::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kRows = kChunkTokens;
constexpr int kStride = kRows + 8;        // floats of a row of a head's matrix
constexpr int kHeads = kThreads / kRows;  // value heads at a time
constexpr int kMatrixFloats = kRows * kStride;
constexpr int kProducts = 2 * kLowerTiles;  // tiles of K K^T and Q K^T
constexpr int kProductsOfWarp = (kProducts + kWarps - 1) / kWarps;

// 16-bit halves of the tiles of a matrix [kRows, 16 * num_tiles]; element (i, p) is in tile (i / 16, p / 16).
template <int kTiles>
PLUMBLINE_DEVICE int HalfAt(int i, int p) {
  const int tile = i / 16 * kTiles + p / 16, lane = i % 8 * 4 + p % 8 / 2, pair = i % 16 / 8 + p % 16 / 8 * 2;
  return ((tile * 2 * kWarpSize + lane) * 4 + pair) * 2 + p % 2;
}
constexpr int kLowHalves = kWarpSize * 8;  // from a rounded value to what the rounding lost

// The pair of low parts that belongs to Pack<Bf16>(x, y).
PLUMBLINE_DEVICE uint32_t PackLost(uint32_t rounded, float x, float y) {
  return Pack<Bf16>(x - LowOf<Bf16>(rounded), y - HighOf<Bf16>(rounded));
}

// Four pairs as a lane holds them, rounded and lost, to a tile in global memory.
PLUMBLINE_DEVICE void StoreTile(uint4* tile, const float (&x)[8]) {
  const int lane = threadIdx.x % kWarpSize;
  const uint4 rounded =
      make_uint4(Pack<Bf16>(x[0], x[1]), Pack<Bf16>(x[2], x[3]), Pack<Bf16>(x[4], x[5]), Pack<Bf16>(x[6], x[7]));
  tile[lane] = rounded;
  tile[kWarpSize + lane] = make_uint4(PackLost(rounded.x, x[0], x[1]), PackLost(rounded.y, x[2], x[3]),
                                      PackLost(rounded.z, x[4], x[5]), PackLost(rounded.w, x[6], x[7]));
}

// Normalised rows as tiles in shared memory, zeros past the chunk and past P.
template <int kTiles>
PLUMBLINE_DEVICE void SplitRow(uint32_t* tiles, const float* x, int key_dim, int i, float scale) {
  const int lane = threadIdx.x % kWarpSize;
  constexpr int kPairs = (8 * kTiles + kWarpSize - 1) / kWarpSize;
  float values[kPairs][2], squares = 0;
#pragma unroll
  for (int j = 0; j < kPairs; ++j) {
    const int p = 2 * (lane + kWarpSize * j);
    values[j][0] = x != nullptr && p < key_dim ? x[p] : 0.0f;
    values[j][1] = x != nullptr && p + 1 < key_dim ? x[p + 1] : 0.0f;
    squares = fmaf(values[j][0], values[j][0], squares);
    squares = fmaf(values[j][1], values[j][1], squares);
  }
  const float factor = NormFactor(squares);
#pragma unroll
  for (int j = 0; j < kPairs; ++j) {
    const int p = 2 * (lane + kWarpSize * j);
    if (p >= 16 * kTiles) continue;
    const float a = values[j][0] * factor * scale, b = values[j][1] * factor * scale;
    const uint32_t rounded = Pack<Bf16>(a, b);
    tiles[HalfAt<kTiles>(i, p) / 2] = rounded;
    tiles[(HalfAt<kTiles>(i, p) + kLowHalves) / 2] = PackLost(rounded, a, b);
  }
}

// Tile (row, column) of A B^T of two matrices in shared memory, as a lane holds it: pairs of columns of d[0], d[1] (the
// second 8 columns), rows g and g + 8.
template <int kTiles>
PLUMBLINE_DEVICE void MultiplyTiles(float (&d)[2][4], const uint4* a_tiles, const uint4* b_tiles) {
  const int lane = threadIdx.x % kWarpSize;
#pragma unroll 1
  for (int l = 0; l < kTiles; ++l) {
    const uint4 a[2] = {a_tiles[l * kTileVectors + lane], a_tiles[l * kTileVectors + kWarpSize + lane]};
    const uint4 b[2] = {b_tiles[l * kTileVectors + lane], b_tiles[l * kTileVectors + kWarpSize + lane]};
#pragma unroll
    for (int part = 0; part < 3; ++part) {  // rounded x rounded, rounded x lost, lost x rounded
      const uint4 x = a[part / 2], y = b[part % 2];
      const uint32_t fragment[4] = {x.x, x.y, x.z, x.w}, first[2] = {y.x, y.z}, second[2] = {y.y, y.w};
      Mma16816<Bf16>(d[0], fragment, first);
      Mma16816<Bf16>(d[1], fragment, second);
    }
  }
}

// A head's gates in the chunk, in shared memory. G is the sum of two floats: differences of large sums keep their digits.
struct ChunkGates {
  float decay[kRows], decay_low[kRows], beta[kRows];
};

// One warp: rows lane and lane + 32.
PLUMBLINE_DEVICE void SumGates(const DeltaNetStep& step, ChunkGates& gates, float2* decays, int64_t first_row, int count,
                               int head) {
  const int lane = threadIdx.x % kWarpSize;
  double sums[2], before = 0;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int i = half * kWarpSize + lane;
    const HeadGates row = i < count ? GatesOf(step, first_row + i, head) : HeadGates{0, 0};
    double sum = row.log_decay;
#pragma unroll
    for (int distance = 1; distance < kWarpSize; distance *= 2) {
      const double other = __shfl_up_sync(kAllLanes, sum, distance);
      if (lane >= distance) sum += other;
    }
    sums[half] = before + sum;
    before = __shfl_sync(kAllLanes, sums[half], kWarpSize - 1);
    gates.decay[i] = static_cast<float>(sums[half]);
    gates.decay_low[i] = static_cast<float>(sums[half] - gates.decay[i]);
    gates.beta[i] = row.beta;
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    decays[half * kWarpSize + lane] =
        make_float2(expf(static_cast<float>(sums[half])), expf(static_cast<float>(before - sums[half])));
  }
}

// Column `column` of (I + M)^-1, from -M^T above the diagonal of the matrix to its place below: rows in ascending order,
// each taken off all later ones. In two halves, so that 32 registers do.
PLUMBLINE_DEVICE void InvertColumn(float* matrix, int column) {
  constexpr int kHalf = kRows / 2;  // columns of one warp
#pragma unroll 1
  for (int half = column / kHalf * kHalf; half < kRows; half += kHalf) {
    float x[kHalf];
#pragma unroll
    for (int i = 0; i < kHalf; ++i) x[i] = half + i == column ? 1.0f : 0.0f;
    if (column < half) {
#pragma unroll 2
      for (int j = 0; j < kHalf; ++j) {
        const float above = j >= column ? matrix[j * kStride + column] : 0.0f;
#pragma unroll
        for (int i = 0; i < kHalf; i += 4) {
          const float4 m = *reinterpret_cast<const float4*>(matrix + j * kStride + kHalf + i);
          x[i] = fmaf(m.x, above, x[i]);
          x[i + 1] = fmaf(m.y, above, x[i + 1]);
          x[i + 2] = fmaf(m.z, above, x[i + 2]);
          x[i + 3] = fmaf(m.w, above, x[i + 3]);
        }
      }
    }
#pragma unroll
    for (int j = 0; j < kHalf - 1; ++j) {
#pragma unroll
      for (int i = (j + 1) / 4 * 4; i < kHalf; i += 4) {
        const float4 m = *reinterpret_cast<const float4*>(matrix + (half + j) * kStride + half + i);
        if (i > j) x[i] = fmaf(m.x, x[j], x[i]);
        if (i + 1 > j) x[i + 1] = fmaf(m.y, x[j], x[i + 1]);
        if (i + 2 > j) x[i + 2] = fmaf(m.z, x[j], x[i + 2]);
        if (i + 3 > j) x[i + 3] = fmaf(m.w, x[j], x[i + 3]);
      }
    }
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      if (half + i >= column) matrix[(half + i) * kStride + column] = x[i];
    }
  }
}

template <int kTiles>
struct PrepareMemory {
  union {
    struct {
      uint4 keys[kChunkTiles * kTiles * kTileVectors], queries[kChunkTiles * kTiles * kTileVectors];
    } tiles;
    float matrices[kHeads][kMatrixFloats];  // once the products are done
  };
  ChunkGates gates[kHeads];
};

template <int kTiles>
__global__ void __launch_bounds__(kThreads, 2) PrepareKernel(DeltaNetStep step, ChunkOperands operands) {
  PrepareMemory<kTiles>& memory = *SharedMemory<PrepareMemory<kTiles>>();
  const int64_t chunk = blockIdx.x;
  const int key_head = blockIdx.y, group = step.num_heads / step.num_key_heads;
  const RowRun run = FindRun<kRows>(step.row_begin, step.num_sequences, blockIdx.x);
  const int count = min(kRows, step.num_prompt_rows[run.sequence] - run.first);
  if (count <= 0) return;
  const int64_t first_row = step.row_begin[run.sequence] + run.first;
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize, g = lane / 4, t = lane % 4;

#pragma unroll 2
  for (int i = warp; i < kRows; i += kWarps) {
    const int64_t row = first_row + i;
    SplitRow<kTiles>(reinterpret_cast<uint32_t*>(memory.tiles.keys), i < count ? KeyAt(step, row, key_head) : nullptr,
                     step.key_dim, i, 1.0f);
    SplitRow<kTiles>(reinterpret_cast<uint32_t*>(memory.tiles.queries), i < count ? QueryAt(step, row, key_head) : nullptr,
                     step.key_dim, i, QueryScale(step));
  }
  __syncthreads();
  constexpr int kMatrixVectors = kChunkTiles * kTiles * kTileVectors;
  const int64_t matrix = (chunk * step.num_key_heads + key_head) * kMatrixVectors;
  for (int i = threadIdx.x; i < kMatrixVectors; i += kThreads) {
    operands.keys[matrix + i] = memory.tiles.keys[i];
    operands.queries[matrix + i] = memory.tiles.queries[i];
  }
  const uint16_t* halves = reinterpret_cast<const uint16_t*>(memory.tiles.keys);
#pragma unroll 2
  for (int i = threadIdx.x; i < kMatrixVectors; i += kThreads) {
    const int tile = i / kTileVectors, low = i % kTileVectors / kWarpSize * kLowHalves;
    const int p = tile / kChunkTiles * 16 + i % kWarpSize / 4, row = tile % kChunkTiles * 16 + i % 4 * 2;
    const auto pair = [&](int key, int token) {
      return halves[HalfAt<kTiles>(token, key) + low] | static_cast<uint32_t>(halves[HalfAt<kTiles>(token + 1, key) + low])
                                                            << 16;
    };
    operands.keys_transposed[matrix + i] =
        make_uint4(pair(p, row), pair(p + 8, row), pair(p, row + 8), pair(p + 8, row + 8));
  }
  float products[kProductsOfWarp][2][4] = {};
#pragma unroll
  for (int n = 0; n < kProductsOfWarp; ++n) {
    const int index = warp + n * kWarps;
    if (index >= kProducts) continue;
    const int tile = index % kLowerTiles,
              row = tile < 1   ? 0
                    : tile < 3 ? 1
                    : tile < 6 ? 2
                               : 3,
              column = tile - LowerTile(row, 0);
    const uint4* a = index < kLowerTiles ? memory.tiles.keys : memory.tiles.queries;
    MultiplyTiles<kTiles>(products[n], a + row * kTiles * kTileVectors, memory.tiles.keys + column * kTiles * kTileVectors);
  }

  for (int first_head = 0; first_head < group; first_head += kHeads) {
    const int num_heads = min(kHeads, group - first_head), value_head = key_head * group + first_head;
    const int64_t out = chunk * step.num_heads + value_head;
    __syncthreads();  // the memory of matrices and gates is in use
    if (warp < num_heads) {
      SumGates(step, memory.gates[warp], operands.decays + (out + warp) * kRows, first_row, count, value_head + warp);
    }
    __syncthreads();
#pragma unroll 1
    for (int h = 0; h < num_heads; ++h) {
      const ChunkGates& gates = memory.gates[h];
#pragma unroll
      for (int n = 0; n < kProductsOfWarp; ++n) {
        const int index = warp + n * kWarps;
        if (index >= kProducts) continue;
        const int tile = index % kLowerTiles,
                  row = tile < 1   ? 0
                        : tile < 3 ? 1
                        : tile < 6 ? 2
                                   : 3,
                  column = tile - LowerTile(row, 0);
        const bool is_weight = index >= kLowerTiles;
        float x[8];  // in the order of operand A: rows g and g + 8 of the first 8 columns, then of the second
#pragma unroll
        for (int e = 0; e < 8; ++e) {
          const int i = row * 16 + g + e / 2 % 2 * 8, j = column * 16 + e / 4 * 8 + 2 * t + e % 2;
          const float difference = (gates.decay[i] - gates.decay[j]) + (gates.decay_low[i] - gates.decay_low[j]);
          const float decay = i >= j ? expf(difference) : 0.0f;
          const float product = products[n][e / 4][e % 4] * decay;
          x[e] = is_weight ? product : i > j ? -gates.beta[i] * product : 0.0f;
          if (!is_weight) memory.matrices[h][j * kStride + i] = x[e];  // zero where i <= j
        }
        if (is_weight) StoreTile(operands.weights + ((out + h) * kLowerTiles + tile) * kTileVectors, x);
      }
    }
    __syncthreads();
    if (static_cast<int>(threadIdx.x) / kRows < num_heads) {
      InvertColumn(memory.matrices[threadIdx.x / kRows], threadIdx.x % kRows);
    }
    __syncthreads();
#pragma unroll 1
    for (int index = warp; index < num_heads * kLowerTiles; index += kWarps) {
      const int tile = index % kLowerTiles,
                row = tile < 1   ? 0
                      : tile < 3 ? 1
                      : tile < 6 ? 2
                                 : 3,
                column = tile - LowerTile(row, 0);
      const float *matrix = memory.matrices[index / kLowerTiles], *beta = memory.gates[index / kLowerTiles].beta;
      float values[8];
#pragma unroll
      for (int pair = 0; pair < 4; ++pair) {
        const int i = row * 16 + g + pair % 2 * 8, j = column * 16 + 2 * t + pair / 2 * 8;
        const float2 y = *reinterpret_cast<const float2*>(matrix + i * kStride + j);
        values[2 * pair] = i >= j ? y.x * beta[j] : 0.0f;
        values[2 * pair + 1] = i >= j + 1 ? y.y * beta[j + 1] : 0.0f;
      }
      StoreTile(operands.solution + (out * kLowerTiles + index) * kTileVectors, values);
    }
  }
}

template <int kTiles>
void LaunchPrepare(const DeltaNetStep& step, const ChunkOperands& operands, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(NumRuns(step.num_rows, step.num_sequences, kRows)), step.num_key_heads);
  Launch({grid, kThreads, sizeof(PrepareMemory<kTiles>), stream}, PrepareKernel<kTiles>, step, operands);
}

}  // namespace

int PaddedKeyTiles(int key_dim) {
  PL_CHECK_MSG(key_dim <= 256, "the delta rule takes keys of up to 256 elements");
  return key_dim <= 32 ? 2 : key_dim <= 64 ? 4 : key_dim <= 128 ? 8 : 16;
}

void PrepareChunks(const DeltaNetStep& step, const ChunkOperands& operands, cudaStream_t stream) {
  switch (PaddedKeyTiles(step.key_dim)) {
    case 2:
      return LaunchPrepare<2>(step, operands, stream);
    case 4:
      return LaunchPrepare<4>(step, operands, stream);
    case 8:
      return LaunchPrepare<8>(step, operands, stream);
    default:
      return LaunchPrepare<16>(step, operands, stream);
  }
}

}  // namespace plumbline::cuda
