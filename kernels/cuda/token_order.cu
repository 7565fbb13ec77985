// The best token of each chunk. Limited by reading the logits: at a GPU's bandwidth (or its L2's) from a few rows on.
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/token_order.cuh"

namespace plumbline::cuda {
namespace {

__global__ void ChunkBestKernel(uint64_t* best, const float* logits, int64_t vocab, int64_t num_chunks) {
  const int64_t row = blockIdx.x / num_chunks, chunk = blockIdx.x % num_chunks;
  const int64_t first = chunk * kTokenChunk + threadIdx.x * kTokensPerThread;
  const uint64_t own = LargestBelow(~uint64_t{0}, logits + row * vocab, first, vocab);
  const uint64_t largest = BlockLargest(own, SharedMemory<uint64_t>());
  if (threadIdx.x == 0) best[blockIdx.x] = largest;
}

}  // namespace

void FindChunkBests(const ConstTensor& logits, uint64_t* best, cudaStream_t stream) {
  const int64_t vocab = logits.dim(1), num_chunks = NumTokenChunks(vocab);
  Launch({static_cast<unsigned>(logits.dim(0) * num_chunks), kTokenThreads, kTokenWarps * sizeof(uint64_t), stream},
         ChunkBestKernel, best, logits.as<float>(), vocab, num_chunks);
}

}  // namespace plumbline::cuda
