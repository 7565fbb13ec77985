// ConcatColumns, Penalties, Logprobs.
//
// ConcatColumns: limited by bytes, 8 per logit. Penalties: by latency. Logprobs: the leaves' sums by exp() in f64, a block
// per row and leaf (for V = 248320 and up to 16 rows some 30 us expected on H200, 50 on A100); the top K by K rounds of a
// block's maximum, about 2 us each.
#include <algorithm>

#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/sequential_sum.cuh"
#include "kernels/cuda/token_order.cuh"
#include "kernels/cuda/types.cuh"

namespace plumbline {
namespace {

using namespace cuda;

constexpr int kThreads = 256;
constexpr int kMaxGridY = 65535;

// T: float, or float4 where all is made of whole ones. columns, width: in T.
template <typename T>
__global__ void ConcatColumnsKernel(T* out, const T* parts, int64_t num_rows, int64_t columns, int64_t width) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= width) return;
  const int64_t part = i / columns, column = i % columns;
  for (int64_t row = blockIdx.y; row < num_rows; row += gridDim.y) {
    out[row * width + i] = parts[(part * num_rows + row) * columns + column];
  }
}

struct PenaltyEntries {
  const int32_t* begin;
  const int32_t* token;
  const int32_t* count;
  const int32_t* seen;
  const float* bias;
  const float* repetition;
  const float* presence;
  const float* frequency;
};

// A block per row; its entries name distinct tokens.
__global__ void PenaltiesKernel(float* logits, int64_t vocab, PenaltyEntries entries) {
  const int64_t row = blockIdx.x;
  const float repetition = entries.repetition[row], frequency = entries.frequency[row], presence = entries.presence[row];
  const int32_t end = entries.begin[row + 1];
  for (int32_t e = entries.begin[row] + static_cast<int32_t>(threadIdx.x); e < end; e += kThreads) {
    float x = logits[row * vocab + entries.token[e]];
    const int32_t count = entries.count[e];
    if (entries.seen[e] != 0) x = x > 0 ? x / repetition : x * repetition;
    x -= frequency * static_cast<float>(count) + (count > 0 ? presence : 0.0f);
    x += entries.bias[e];
    logits[row * vocab + entries.token[e]] = x;
  }
}

// Of a vocabulary leaf of a row.
struct LeafTotals {
  double sum;             // of exp(x - max), in ascending order
  int64_t before_target;  // tokens ordered before the row's target
};

struct LogprobsScratch {
  SumScratch sum;
  uint64_t keys[kTokenWarps];
  Count counts[kTokenWarps];
};

__global__ void LeafTotalsKernel(LeafTotals* totals, const float* logits, const uint64_t* chunk_best, const int32_t* targets,
                                 int64_t vocab, int64_t num_chunks) {
  LogprobsScratch* scratch = SharedMemory<LogprobsScratch>();
  const int64_t row = blockIdx.x / kNumLeaves, leaf_size = (vocab + kNumLeaves - 1) / kNumLeaves;
  const int64_t begin = blockIdx.x % kNumLeaves * leaf_size, end = min(vocab, begin + leaf_size);
  const float* x = logits + row * vocab;
  const double max = x[IdOfKey(RowBest(chunk_best + row * num_chunks, num_chunks, scratch->keys))];
  const uint64_t target = TokenKey(x[targets[row]], targets[row]);
  constexpr double kNoLimit = 0x1.fffffffffffffp1023;
  double sum = 0;
  Count before;
  for (int64_t tile = begin; tile < end; tile += kTokenChunk) {
    const int64_t first = tile + threadIdx.x * kTokensPerThread;
    float tokens[kTokensPerThread];
    LoadTokens(tokens, x, first, end);
    double p[kTokensPerThread];
#pragma unroll
    for (int i = 0; i < kTokensPerThread; ++i) {
      p[i] = exp(tokens[i] - max);
      if (!(p[i] >= 0)) p[i] = 0;  // past the end, or a NaN
      before.value += first + i < end && TokenKey(tokens[i], first + i) > target ? 1 : 0;
    }
    sum = AddInOrder(sum, p, kNoLimit, &scratch->sum).sum;
  }
  const Count all = BlockScan(before, scratch->counts).all;
  if (threadIdx.x == 0) totals[blockIdx.x] = {sum, all.value};
}

struct LogprobsOut {
  float* target_logprobs;
  int32_t* target_ranks;
  int32_t* top_ids;
  float* top_logprobs;
  int64_t num_top;
};

// A block per row. The top tokens: K times the largest of the chunks' keys (in shared memory), in whose place then comes the
// chunk's next.
__global__ void LogprobsKernel(LogprobsOut out, const LeafTotals* totals, const float* logits, const uint64_t* chunk_best,
                               const int32_t* targets, int64_t vocab, int64_t num_chunks) {
  LogprobsScratch* scratch = SharedMemory<LogprobsScratch>();
  uint64_t* best = reinterpret_cast<uint64_t*>(scratch + 1);  // [chunks]
  const int64_t row = blockIdx.x;
  const float* x = logits + row * vocab;
  for (int64_t c = threadIdx.x; c < num_chunks; c += blockDim.x) best[c] = chunk_best[row * num_chunks + c];
  __syncthreads();
  uint64_t top = RowBest(best, num_chunks, scratch->keys);
  double sums[kNumLeaves];
  int64_t rank = 1;
#pragma unroll
  for (int leaf = 0; leaf < kNumLeaves; ++leaf) {
    sums[leaf] = totals[row * kNumLeaves + leaf].sum;
    rank += totals[row * kNumLeaves + leaf].before_target;
  }
  const double all = ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
  const double lse = x[IdOfKey(top)] + log(all);
  if (threadIdx.x == 0) {
    out.target_logprobs[row] = static_cast<float>(x[targets[row]] - lse);
    out.target_ranks[row] = static_cast<int32_t>(rank);
  }
  for (int64_t i = 0; i < out.num_top; ++i) {
    const int32_t id = IdOfKey(top);
    if (threadIdx.x == 0) {
      out.top_ids[row * out.num_top + i] = id;
      out.top_logprobs[row * out.num_top + i] = static_cast<float>(x[id] - lse);
    }
    if (i + 1 == out.num_top) break;
    const int64_t chunk = id / kTokenChunk;
    const uint64_t own = LargestBelow(top, x, chunk * kTokenChunk + threadIdx.x * kTokensPerThread, vocab);
    const uint64_t next = BlockLargest(own, scratch->keys);
    if (threadIdx.x == 0) best[chunk] = next;
    __syncthreads();
    top = RowBest(best, num_chunks, scratch->keys);
  }
}

bool IsAligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

}  // namespace

void CudaOps::DoConcatColumns(const ConcatColumnsArgs& args) {
  const int64_t rows = args.out.dim(0), width = args.out.dim(1), columns = args.parts.dim(2);
  if (width == 0) return;
  const auto launch = [&]<typename T>(T* out, const T* parts, int64_t per_unit) {
    Launch({{BlocksFor(width / per_unit, kThreads), static_cast<unsigned>(std::min<int64_t>(rows, kMaxGridY))},
            kThreads,
            0,
            stream()},
           ConcatColumnsKernel<T>, out, parts, rows, columns / per_unit, width / per_unit);
  };
  if (columns % 4 == 0 && width % 4 == 0 && IsAligned(args.out.raw()) && IsAligned(args.parts.raw())) {
    launch(reinterpret_cast<float4*>(args.out.as<float>()), reinterpret_cast<const float4*>(args.parts.as<float>()), 4);
  } else {
    launch(args.out.as<float>(), args.parts.as<float>(), 1);
  }
}

void CudaOps::DoPenalties(const PenaltiesArgs& args) {
  const PenaltyEntries entries = {args.entry_begin.as<int32_t>(), args.token.as<int32_t>(),  args.count.as<int32_t>(),
                                  args.seen.as<int32_t>(),        args.bias.as<float>(),     args.repetition.as<float>(),
                                  args.presence.as<float>(),      args.frequency.as<float>()};
  Launch({static_cast<unsigned>(args.logits.dim(0)), kThreads, 0, stream()}, PenaltiesKernel, args.logits.as<float>(),
         args.logits.dim(1), entries);
}

void CudaOps::DoLogprobs(const LogprobsArgs& args) {
  const int64_t rows = args.logits.dim(0), vocab = args.logits.dim(1), chunks = NumTokenChunks(vocab);
  const LogprobsOut out = {args.target_logprobs.as<float>(), args.target_ranks.as<int32_t>(), Data<int32_t>(args.top_ids),
                           Data<float>(args.top_logprobs), args.top_ids.empty() ? 0 : args.top_ids.dim(1)};
  LeafTotals* totals =
      static_cast<LeafTotals*>(workspace_.Take(rows * (kNumLeaves * sizeof(LeafTotals) + chunks * sizeof(uint64_t))));
  uint64_t* chunk_best = reinterpret_cast<uint64_t*>(totals + rows * kNumLeaves);
  FindChunkBests(args.logits, chunk_best, stream());
  Launch({static_cast<unsigned>(rows * kNumLeaves), kTokenThreads, sizeof(LogprobsScratch), stream()}, LeafTotalsKernel,
         totals, args.logits.as<float>(), chunk_best, args.targets.as<int32_t>(), vocab, chunks);
  Launch({static_cast<unsigned>(rows), kTokenThreads, sizeof(LogprobsScratch) + chunks * sizeof(uint64_t), stream()},
         LogprobsKernel, out, totals, args.logits.as<float>(), chunk_best, args.targets.as<int32_t>(), vocab, chunks);
}

}  // namespace plumbline
