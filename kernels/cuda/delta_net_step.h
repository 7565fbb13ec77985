// What the parts of GatedDeltaNet share: the arguments of a step as kernels take them, and the operands that the chunks of
// its prompt rows are prepared into. out is o, before the gated norm.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/ops.h"

namespace plumbline::cuda {

struct DeltaNetStep {
  float* out;                                                       // [T, Hv, Q]
  float* state;                                                     // [num_slots, Hv, P, Q]
  const float* conv;                                                // [T, C]: q heads | k heads | v heads
  const float* gates;                                               // [T, Hv * Q + 2 * Hv]: z | b | a
  const float *a_log, *dt_bias;                                     // [Hv]
  const int32_t *row_begin, *start, *num_prompt_rows, *state_slot;  // of SequenceRows
  int64_t num_rows;
  int num_sequences, num_key_heads, num_heads, key_dim, value_dim;
};

// A chunk's matrices as tiles [16, 16], each in the order in which a warp holds operand A of Mma16816, as the sum of two
// bf16 numbers: 32 lanes of 16 bytes with the values rounded, 32 with what the rounding lost. Chunks are numbered as runs
// (sequence_runs.cuh). K and Q are the normalised keys and queries, D = diag(e^G), (I + M)^-1 the solution of the rule's
// equations (delta_net_prepare.cu).
struct ChunkOperands {
  uint4* keys;             // [chunks, Hk, 4, key_tiles] tiles: K
  uint4* queries;          // [chunks, Hk, 4, key_tiles]: Q
  uint4* keys_transposed;  // [chunks, Hk, key_tiles, 4]: K^T
  uint4* solution;         // [chunks, Hv, 10]: (I + M)^-1 diag(beta), on and below the diagonal
  uint4* weights;          // [chunks, Hv, 10]: of X in O, likewise
  float2* decays;          // [chunks, Hv, 64]: e^G_i, e^(G_last - G_i)
};
inline constexpr int kTileVectors = 64;  // uint4 of a tile
inline constexpr int kChunkTiles = kChunkTokens / 16;
inline constexpr int kLowerTiles = kChunkTiles * (kChunkTiles + 1) / 2;

// The number of a tile on or below the diagonal.
constexpr int LowerTile(int row, int column) { return row * (row + 1) / 2 + column; }

// P in tiles as the kernels have it: 2, 4, 8 or 16.
int PaddedKeyTiles(int key_dim);

// The three parts, in the order of their calls. Each enqueues; the first two do nothing where no sequence has prompt rows.
void PrepareChunks(const DeltaNetStep& step, const ChunkOperands& operands, cudaStream_t stream);
void WalkChunks(const DeltaNetStep& step, const ChunkOperands& operands, int num_multiprocessors, cudaStream_t stream);
void RunRecurrence(const DeltaNetStep& step, cudaStream_t stream);

}  // namespace plumbline::cuda
