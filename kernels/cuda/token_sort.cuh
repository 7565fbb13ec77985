// Sorts tokens into the order of token_order.cuh, by a block of kTokenThreads threads.
#pragma once

#include <cstdint>

#include "kernels/cuda/block_scan.cuh"
#include "kernels/cuda/token_order.cuh"

namespace plumbline::cuda {

// The keys in shared memory, largest first: a bitonic network. `size`: a power of two.
PLUMBLINE_DEVICE void SortKeys(uint64_t* keys, unsigned size) {
  for (unsigned width = 2; width <= size; width *= 2) {
    for (unsigned step = width / 2; step > 0; step /= 2) {
      __syncthreads();
      for (unsigned i = threadIdx.x; i < size / 2; i += blockDim.x) {
        const unsigned a = 2 * i - i % step, b = a + step;
        const uint64_t x = keys[a], y = keys[b];
        if ((x < y) == ((a & width) == 0)) keys[a] = y, keys[b] = x;
      }
    }
  }
  __syncthreads();
}

// ids[0, size), ascending, into the order of their logits: a stable radix sort, 8 bits at a time, from `ids` to `other` and
// back. A warp ranks its 32 * kTokensPerThread ids of a tile 32 at a time; counts carry over between warps and tiles.
struct RadixScratch {
  unsigned begin[4][256];             // of a digit in the sorted list
  unsigned counts[kTokenWarps][256];  // of a warp's ids so far; then where its ids of a digit go
  Count scan[kTokenWarps];
};

// Digits ascend while logits descend.
PLUMBLINE_DEVICE unsigned DigitOf(float logit, int digit) { return (~LogitKey(logit) >> (8 * digit)) & 255u; }

PLUMBLINE_DEVICE void SortIds(int32_t* ids, int32_t* other, const float* logits, int64_t size, RadixScratch* scratch) {
  static_assert(kTokenThreads == 256, "a thread per digit");
  const unsigned lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  for (int digit = 0; digit < 4; ++digit) scratch->begin[digit][threadIdx.x] = 0;
  __syncthreads();
  for (int64_t i = threadIdx.x; i < size; i += kTokenThreads) {
    const float logit = logits[ids[i]];
    for (int digit = 0; digit < 4; ++digit) atomicAdd(&scratch->begin[digit][DigitOf(logit, digit)], 1u);
  }
  __syncthreads();
  for (int digit = 0; digit < 4; ++digit) {
    scratch->begin[digit][threadIdx.x] = BlockScan(Count{scratch->begin[digit][threadIdx.x]}, scratch->scan).before.value;
  }
  for (int digit = 0; digit < 4; ++digit) {
    for (int64_t tile = 0; tile < size; tile += kTokenChunk) {
      __syncthreads();
      for (int w = 0; w < kTokenWarps; ++w) scratch->counts[w][threadIdx.x] = 0;
      __syncthreads();
      int32_t id[kTokensPerThread];
      unsigned value[kTokensPerThread], rank[kTokensPerThread];  // value 256: past the end
#pragma unroll
      for (int i = 0; i < kTokensPerThread; ++i) {
        const int64_t at = tile + (warp * kTokensPerThread + i) * kWarpSize + lane;
        id[i] = at < size ? ids[at] : 0;
        value[i] = at < size ? DigitOf(logits[id[i]], digit) : 256u;
      }
#pragma unroll
      for (int i = 0; i < kTokensPerThread; ++i) {
        unsigned equal = kAllLanes;
#pragma unroll
        for (int bit = 0; bit < 9; ++bit) {
          const unsigned set = __ballot_sync(kAllLanes, static_cast<int>(value[i] >> bit & 1));
          equal &= (value[i] >> bit & 1) != 0 ? set : ~set;
        }
        const unsigned before = static_cast<unsigned>(__popc(equal & ((1u << lane) - 1)));
        if (value[i] < 256) rank[i] = scratch->counts[warp][value[i]] + before;
        __syncwarp();
        if (value[i] < 256 && before == 0) scratch->counts[warp][value[i]] += static_cast<unsigned>(__popc(equal));
        __syncwarp();
      }
      __syncthreads();
      unsigned next = scratch->begin[digit][threadIdx.x];
      for (int w = 0; w < kTokenWarps; ++w) {
        const unsigned count = scratch->counts[w][threadIdx.x];
        scratch->counts[w][threadIdx.x] = next;
        next += count;
      }
      scratch->begin[digit][threadIdx.x] = next;
      __syncthreads();
#pragma unroll
      for (int i = 0; i < kTokensPerThread; ++i) {
        if (value[i] < 256) other[scratch->counts[warp][value[i]] + rank[i]] = id[i];
      }
    }
    __syncthreads();
    int32_t* const sorted = other;
    other = ids;
    ids = sorted;
  }
}

}  // namespace plumbline::cuda
