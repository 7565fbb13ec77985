// Sample. Six kernels; which way a row goes is known on the device only, so all are enqueued, and blocks without work end:
//   greedy    the row's best token.
//   all       neither top_k nor top_p: prefix sums over all V in id order. Chunks turn their p into steps of the sum in
//             parallel, for the unit the sum is expected to have there; one block goes over the chunks and redoes those
//             where it has another.
//   ordered   top_k or top_p: a histogram by distance from the largest logit tells how far down the order the draw can
//             reach; the tokens above, few as a rule, are gathered and sorted.
//   the rest  ordered, but with more than kMaxCandidates tokens, or with a top_p that falls within rounding of a token's
//             prefix sum: a block sorts all it needs.
// All draw by sequential f64 sums in list order (sequential_sum.cuh); the shortcuts only say which parts need a second look.
//
// Limited by exp() in f64, one to three per token, spread over the whole GPU, and for few rows by the last block of a row:
// for V = 248320 and one row expected about 20 us + 3 us for each chunk in which the sum passes a power of two (some ten).
// The rest: 1 ms and more.
#include <algorithm>

#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/draw.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/token_sort.cuh"
#include "kernels/cuda/types.cuh"

namespace plumbline {
namespace {

using namespace cuda;

constexpr unsigned kMaxCandidates = 4096;
constexpr int kMaxSorters = 32;  // blocks that sort all of a row, each with memory for it

// A chunk's effect on a sum of this unit; unit 0: on none.
struct ChunkSteps {
  Steps steps;
  int unit;
};

// [R, ...] each, as far as a row needs it.
struct SampleState {
  int32_t* tokens;
  const float* logits;
  int64_t num_rows, vocab, num_chunks;
  SampleSettings settings;
  uint64_t* best;            // [R, chunks]: keys
  double* sums;              // [R, chunks]: of p, in any order
  ChunkSteps* steps;         // [R, chunks]
  Mass* masses;              // [R, kBins]
  unsigned* counts;          // [R, kBins]
  uint64_t* candidates;      // [R, kMaxCandidates]: keys
  unsigned* num_candidates;  // [R]
  int32_t* ids;              // [sorters, 2, V]

  PLUMBLINE_DEVICE const float* LogitsOf(int64_t row) const { return logits + row * vocab; }
};

struct BlockScratch {
  uint64_t keys[kTokenWarps];
  double sums[kTokenWarps];
  Count counts[kTokenWarps];
  SumScratch sum;
  CutScratch cut;
};

PLUMBLINE_DEVICE DrawRow RowOf(const SampleState& state, int64_t row, BlockScratch* scratch) {
  const uint64_t best = RowBest(state.best + row * state.num_chunks, state.num_chunks, scratch->keys);
  return DrawRowOf(state.settings, row, state.LogitsOf(row)[IdOfKey(best)]);
}

PLUMBLINE_DEVICE double BlockSumF64(double x, double* scratch) {
#pragma unroll
  for (int step = kWarpSize / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  __syncthreads();  // scratch may be in use
  if (threadIdx.x % kWarpSize == 0) scratch[threadIdx.x / kWarpSize] = x;
  __syncthreads();
  double sum = 0;
  for (int w = 0; w < kTokenWarps; ++w) sum += scratch[w];
  return sum;
}

__global__ void ClearKernel(SampleState state) {
  const int64_t row = blockIdx.x;
  for (int bin = threadIdx.x; bin < kBins; bin += kTokenThreads) {
    state.counts[row * kBins + bin] = 0;
    state.masses[row * kBins + bin] = 0;
  }
  if (threadIdx.x == 0) state.num_candidates[row] = 0;
}

// Of a chunk: its sum, or its part of the histogram.
struct WeighScratch {
  BlockScratch block;
  Mass masses[kBins];
  unsigned counts[kBins];
};
__global__ void WeighKernel(SampleState state) {
  WeighScratch* scratch = SharedMemory<WeighScratch>();
  const int64_t row = blockIdx.x / state.num_chunks, chunk = blockIdx.x % state.num_chunks;
  if (state.settings.temperature[row] == 0) return;
  const DrawRow draw = RowOf(state, row, &scratch->block);
  float logits[kTokensPerThread];
  LoadTokens(logits, state.LogitsOf(row), chunk * kTokenChunk + threadIdx.x * kTokensPerThread, state.vocab);
  if (!draw.is_ordered()) {
    double sum = 0;
#pragma unroll
    for (int i = 0; i < kTokensPerThread; ++i) sum += draw.ListedP(logits[i]);
    sum = BlockSumF64(sum, scratch->block.sums);
    if (threadIdx.x == 0) state.sums[blockIdx.x] = sum;
    return;
  }
  for (int bin = threadIdx.x; bin < kBins; bin += kTokenThreads) scratch->masses[bin] = scratch->counts[bin] = 0;
  __syncthreads();
  Tally last;  // of the last bin, where most tokens can be: added once per thread
#pragma unroll
  for (int i = 0; i < kTokensPerThread; ++i) {
    if (!draw.Lists(logits[i])) continue;
    const Mass mass = draw.top_k > 0 ? 0 : MassOf(draw.P(logits[i]));
    const int bin = BinOf(draw, logits[i]);
    if (bin == kBins - 1) {
      last = last.Then({1, mass});
    } else {
      atomicAdd(&scratch->counts[bin], 1u);
      if (mass > 0) atomicAdd(&scratch->masses[bin], mass);
    }
  }
  if (last.count > 0) atomicAdd(&scratch->counts[kBins - 1], last.count);
  if (last.mass > 0) atomicAdd(&scratch->masses[kBins - 1], last.mass);
  __syncthreads();
  for (int bin = threadIdx.x; bin < kBins; bin += kTokenThreads) {
    if (scratch->counts[bin] > 0) atomicAdd(&state.counts[row * kBins + bin], scratch->counts[bin]);
    if (scratch->masses[bin] > 0) atomicAdd(&state.masses[row * kBins + bin], scratch->masses[bin]);
  }
}

// Of a chunk: its steps, or its candidates, in any order.
__global__ void GatherKernel(SampleState state) {
  BlockScratch* scratch = SharedMemory<BlockScratch>();
  const int64_t row = blockIdx.x / state.num_chunks, chunk = blockIdx.x % state.num_chunks;
  if (state.settings.temperature[row] == 0) return;
  const DrawRow draw = RowOf(state, row, scratch);
  const int64_t first = chunk * kTokenChunk + threadIdx.x * kTokensPerThread;
  float logits[kTokensPerThread];
  LoadTokens(logits, state.LogitsOf(row), first, state.vocab);
  if (!draw.is_ordered()) {
    double before = 0;
    for (int64_t c = threadIdx.x; c < chunk; c += kTokenThreads) before += state.sums[row * state.num_chunks + c];
    before = BlockSumF64(before, scratch->sums);
    const int unit = UnitOfSum(std::bit_cast<uint64_t>(before));
    Steps own;
#pragma unroll
    for (int i = 0; i < kTokensPerThread; ++i) own = own.Then(StepsOf(draw.ListedP(logits[i]), unit));
    const Steps all = BlockScan(own, scratch->sum.steps).all;
    if (threadIdx.x == 0) state.steps[blockIdx.x] = {all, unit};
    return;
  }
  const Cut cut = FindCut(draw, state.counts + row * kBins, state.masses + row * kBins, &scratch->cut);
  if (cut.count > kMaxCandidates) return;
#pragma unroll
  for (int i = 0; i < kTokensPerThread; ++i) {
    if (!draw.Lists(logits[i]) || BinOf(draw, logits[i]) > cut.bin) continue;
    const unsigned at = atomicAdd(&state.num_candidates[row], 1u);
    state.candidates[row * kMaxCandidates + at] = TokenKey(logits[i], first + i);
  }
}

// The way `all`, over the chunks; -1 when no sum exceeds the limit. In shared memory, of each chunk: the sum up to its end,
// and its steps.
struct AllChunks {
  double* sums;
  ChunkSteps* steps;
};
PLUMBLINE_DEVICE int32_t DrawFromAll(const SampleState& state, int64_t row, const DrawRow& draw, double uniform,
                                     const AllChunks& chunks, SumScratch* scratch) {
  const auto add_chunk = [&](int64_t chunk, double sum, double limit) {
    float logits[kTokensPerThread];
    LoadTokens(logits, state.LogitsOf(row), chunk * kTokenChunk + threadIdx.x * kTokensPerThread, state.vocab);
    double p[kTokensPerThread];
#pragma unroll
    for (int i = 0; i < kTokensPerThread; ++i) p[i] = draw.ListedP(logits[i]);
    return AddInOrder(sum, p, limit, scratch);
  };
  for (int64_t c = threadIdx.x; c < state.num_chunks; c += kTokenThreads) {
    chunks.steps[c] = state.steps[row * state.num_chunks + c];
  }
  __syncthreads();
  constexpr double kNoLimit = 0x1.fffffffffffffp1023;
  double sum = 0;
  for (int64_t chunk = 0; chunk < state.num_chunks; ++chunk) {
    const ChunkSteps steps = chunks.steps[chunk];
    const uint64_t bits = std::bit_cast<uint64_t>(sum), after = BitsAfter(bits, steps.steps);
    const bool fits = UnitOfSum(bits) == steps.unit && UnitOfSum(after) == steps.unit;
    sum = fits ? std::bit_cast<double>(after) : add_chunk(chunk, sum, kNoLimit).sum;
    if (threadIdx.x == 0) chunks.sums[chunk] = sum;
  }
  __syncthreads();
  const double limit = uniform * sum;
  int64_t chunk = 0;
  while (chunk < state.num_chunks && !(chunks.sums[chunk] > limit)) ++chunk;
  if (chunk == state.num_chunks) return -1;
  const int64_t in_chunk = add_chunk(chunk, chunk == 0 ? 0.0 : chunks.sums[chunk - 1], limit).index;
  return static_cast<int32_t>(chunk * kTokenChunk + in_chunk);
}

// Shared memory of DrawKernel: BlockScratch, then AllChunks or the candidates [kMaxCandidates].
size_t DrawShared(int64_t num_chunks) {
  return sizeof(BlockScratch) +
         std::max<size_t>(num_chunks * (sizeof(double) + sizeof(ChunkSteps)), kMaxCandidates * sizeof(uint64_t));
}

// tokens[r], or -1 for the rest.
__global__ void DrawKernel(SampleState state) {
  BlockScratch* scratch = SharedMemory<BlockScratch>();
  uint64_t* keys = reinterpret_cast<uint64_t*>(scratch + 1);
  const int64_t row = blockIdx.x;
  const float* logits = state.LogitsOf(row);
  const uint64_t best = RowBest(state.best + row * state.num_chunks, state.num_chunks, scratch->keys);
  const DrawRow draw = DrawRowOf(state.settings, row, logits[IdOfKey(best)]);
  const double uniform = UniformDraw(state.settings.seed[row], state.settings.position[row]);
  int32_t token = IdOfKey(best);  // also where nothing is listed: infinities or NaNs
  if (!draw.is_greedy() && !draw.is_ordered()) {
    ChunkSteps* const steps = reinterpret_cast<ChunkSteps*>(scratch + 1);
    const AllChunks chunks = {reinterpret_cast<double*>(steps + state.num_chunks), steps};
    const int32_t drawn = DrawFromAll(state, row, draw, uniform, chunks, &scratch->sum);
    if (drawn >= 0) token = drawn;
  } else if (!draw.is_greedy()) {
    const Cut cut = FindCut(draw, state.counts + row * kBins, state.masses + row * kBins, &scratch->cut);
    if (cut.count > kMaxCandidates) {
      token = -1;
    } else if (cut.count > 0) {
      unsigned padded = 1;
      while (padded < cut.count) padded *= 2;
      for (unsigned i = threadIdx.x; i < padded; i += kTokenThreads) {
        keys[i] = i < cut.count ? state.candidates[row * kMaxCandidates + i] : 0;
      }
      SortKeys(keys, padded);
      const auto p_at = [&](int64_t i) { return draw.P(logits[IdOfKey(keys[i])]); };
      const int64_t drawn = DrawInOrder(draw, uniform, {cut.count, cut.is_whole(), cut}, p_at, &scratch->sum);
      token = drawn < 0 ? -1 : IdOfKey(keys[drawn]);
    }
  }
  if (threadIdx.x == 0) state.tokens[row] = token;
}

struct SortScratch {
  BlockScratch block;
  RadixScratch radix;
};

// The ids of bins [0, bin] that are listed, ascending. Returns how many.
PLUMBLINE_DEVICE int64_t ListIds(const SampleState& state, int64_t row, const DrawRow& draw, int bin, int32_t* ids,
                                 BlockScratch* scratch) {
  unsigned size = 0;
  for (int64_t chunk = 0; chunk < state.num_chunks; ++chunk) {
    const int64_t first = chunk * kTokenChunk + threadIdx.x * kTokensPerThread;
    float logits[kTokensPerThread];
    LoadTokens(logits, state.LogitsOf(row), first, state.vocab);
    Count own;
#pragma unroll
    for (int i = 0; i < kTokensPerThread; ++i) own.value += draw.Lists(logits[i]) && BinOf(draw, logits[i]) <= bin ? 1 : 0;
    const auto [before, all] = BlockScan(own, scratch->counts);
    unsigned at = size + before.value;
#pragma unroll
    for (int i = 0; i < kTokensPerThread; ++i) {
      if (draw.Lists(logits[i]) && BinOf(draw, logits[i]) <= bin) ids[at++] = static_cast<int32_t>(first + i);
    }
    size += all.value;
  }
  __syncthreads();
  return size;
}

// The rows that DrawKernel left.
__global__ void SortedDrawKernel(SampleState state) {
  SortScratch* scratch = SharedMemory<SortScratch>();
  int32_t* ids = state.ids + blockIdx.x * 2 * state.vocab;
  for (int64_t row = blockIdx.x; row < state.num_rows; row += gridDim.x) {
    if (state.tokens[row] >= 0) continue;
    const float* logits = state.LogitsOf(row);
    const DrawRow draw = RowOf(state, row, &scratch->block);
    const Cut cut = FindCut(draw, state.counts + row * kBins, state.masses + row * kBins, &scratch->block.cut);
    const double uniform = UniformDraw(state.settings.seed[row], state.settings.position[row]);
    const auto p_at = [&](int64_t i) { return draw.P(logits[ids[i]]); };
    int64_t drawn = -1;
    for (int bin = cut.bin; drawn < 0; bin = kBins - 1) {  // the second time all of the list, which can tell
      const int64_t size = ListIds(state, row, draw, bin, ids, &scratch->block);
      SortIds(ids, ids + state.vocab, logits, size, &scratch->radix);
      drawn = DrawInOrder(draw, uniform, {size, bin == kBins - 1 || cut.is_whole(), cut}, p_at, &scratch->block.sum);
    }
    if (threadIdx.x == 0) state.tokens[row] = ids[drawn];
  }
}

}  // namespace

void CudaOps::DoSample(const SampleArgs& args) {
  const int64_t rows = args.logits.dim(0), vocab = args.logits.dim(1), chunks = NumTokenChunks(vocab);
  const int64_t sorters = std::min<int64_t>(rows, kMaxSorters);
  SampleState state = {.tokens = args.tokens.as<int32_t>(),
                       .logits = args.logits.as<float>(),
                       .num_rows = rows,
                       .vocab = vocab,
                       .num_chunks = chunks,
                       .settings = {args.temperature.as<float>(), args.top_k.as<int32_t>(), args.top_p.as<float>(),
                                    args.min_p.as<float>(), args.seed.as<int64_t>(), args.position.as<int32_t>()}};
  // The largest elements first: each part is aligned.
  const size_t bytes_per_chunk = sizeof(ChunkSteps) + sizeof(uint64_t) + sizeof(double);
  const size_t bytes_per_row =
      kBins * (sizeof(Mass) + sizeof(unsigned)) + kMaxCandidates * sizeof(uint64_t) + sizeof(unsigned);
  char* next = static_cast<char*>(
      workspace_.Take(rows * (chunks * bytes_per_chunk + bytes_per_row) + sorters * 2 * vocab * sizeof(int32_t)));
  const auto take = [&]<typename T>(T*& part, int64_t count) {
    part = reinterpret_cast<T*>(next);
    next += count * sizeof(T);
  };
  take(state.steps, rows * chunks);
  take(state.best, rows * chunks);
  take(state.sums, rows * chunks);
  take(state.masses, rows * kBins);
  take(state.candidates, rows * kMaxCandidates);
  take(state.counts, rows * kBins);
  take(state.num_candidates, rows);
  take(state.ids, sorters * 2 * vocab);
  const unsigned num_rows = static_cast<unsigned>(rows), num_chunks = static_cast<unsigned>(rows * chunks);
  FindChunkBests(args.logits, state.best, stream());
  Launch({num_rows, kTokenThreads, 0, stream()}, ClearKernel, state);
  Launch({num_chunks, kTokenThreads, sizeof(WeighScratch), stream()}, WeighKernel, state);
  Launch({num_chunks, kTokenThreads, sizeof(BlockScratch), stream()}, GatherKernel, state);
  Launch({num_rows, kTokenThreads, DrawShared(chunks), stream()}, DrawKernel, state);
  Launch({static_cast<unsigned>(sorters), kTokenThreads, sizeof(SortScratch), stream()}, SortedDrawKernel, state);
}

}  // namespace plumbline
