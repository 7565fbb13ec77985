// Rows of logits: their chunks, and the order (logit descending, id ascending) as 64-bit keys, the first token's largest.
#pragma once

#include <cstdint>

#include "kernels/cuda/primitives.cuh"
#include "kernels/tensor.h"

namespace plumbline::cuda {

// A block of kTokenThreads threads takes a chunk, thread t its tokens [t * kTokensPerThread, (t + 1) * kTokensPerThread).
inline constexpr int kTokenThreads = 256, kTokenWarps = kTokenThreads / kWarpSize;
inline constexpr int kTokensPerThread = 8, kTokenChunk = kTokenThreads * kTokensPerThread;

inline int64_t NumTokenChunks(int64_t vocab) { return (vocab + kTokenChunk - 1) / kTokenChunk; }

// best[r * chunks + c]: the largest key of chunk c of row r. logits: [R, V] f32.
void FindChunkBests(const ConstTensor& logits, uint64_t* best, cudaStream_t stream);

// Larger for larger logits; the zeros are equal; NaNs come last.
PLUMBLINE_DEVICE uint32_t LogitKey(float logit) {
  if (logit != logit) return 0;
  const uint32_t bits = __float_as_uint(logit + 0.0f);  // -0 + 0 is 0
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
// Unique in a row, above 0.
PLUMBLINE_DEVICE uint64_t TokenKey(float logit, int64_t id) {
  return uint64_t{LogitKey(logit)} << 32 | (0xffffffffu - static_cast<uint32_t>(id));
}
PLUMBLINE_DEVICE int32_t IdOfKey(uint64_t key) { return static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(key)); }

// logits[first, first + kTokensPerThread) of a row; NaN past its end.
PLUMBLINE_DEVICE void LoadTokens(float (&out)[kTokensPerThread], const float* row, int64_t first, int64_t vocab) {
  static_assert(kTokensPerThread == 8);
  if (first + kTokensPerThread <= vocab && reinterpret_cast<uintptr_t>(row + first) % 16 == 0) {
    const float4 a = *reinterpret_cast<const float4*>(row + first), b = *reinterpret_cast<const float4*>(row + first + 4);
    out[0] = a.x, out[1] = a.y, out[2] = a.z, out[3] = a.w;
    out[4] = b.x, out[5] = b.y, out[6] = b.z, out[7] = b.w;
    return;
  }
#pragma unroll
  for (int i = 0; i < kTokensPerThread; ++i) out[i] = first + i < vocab ? row[first + i] : __uint_as_float(0x7fffffffu);
}

PLUMBLINE_DEVICE uint64_t WarpLargest(uint64_t key) {
#pragma unroll
  for (int step = kWarpSize / 2; step > 0; step /= 2) {
    const uint64_t other = __shfl_xor_sync(kAllLanes, key, step);
    key = other > key ? other : key;
  }
  return key;
}
// scratch: one key per warp. All threads of the block call it.
PLUMBLINE_DEVICE uint64_t BlockLargest(uint64_t key, uint64_t* scratch) {
  key = WarpLargest(key);
  __syncthreads();  // scratch may be in use
  if (threadIdx.x % kWarpSize == 0) scratch[threadIdx.x / kWarpSize] = key;
  __syncthreads();
  uint64_t largest = scratch[0];
  for (unsigned w = 1; w < blockDim.x / kWarpSize; ++w) largest = scratch[w] > largest ? scratch[w] : largest;
  return largest;
}
// The row's largest key, from those of its chunks.
PLUMBLINE_DEVICE uint64_t RowBest(const uint64_t* chunk_best, int64_t num_chunks, uint64_t* scratch) {
  uint64_t best = 0;
  for (int64_t c = threadIdx.x; c < num_chunks; c += blockDim.x) best = chunk_best[c] > best ? chunk_best[c] : best;
  return BlockLargest(best, scratch);
}
// The thread's largest key below `bound` of the tokens from `first` on.
PLUMBLINE_DEVICE uint64_t LargestBelow(uint64_t bound, const float* row, int64_t first, int64_t vocab) {
  float logits[kTokensPerThread];
  LoadTokens(logits, row, first, vocab);
  uint64_t best = 0;
#pragma unroll
  for (int i = 0; i < kTokensPerThread; ++i) {
    const uint64_t key = first + i < vocab ? TokenKey(logits[i], first + i) : 0;
    if (key < bound && key > best) best = key;
  }
  return best;
}

}  // namespace plumbline::cuda
