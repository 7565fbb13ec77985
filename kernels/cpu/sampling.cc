// ConcatColumns, Penalties, Sample, Logprobs. Exponentials and their sums are f64 with the C library's exp: the same in
// every CPU arithmetic.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/ordered_tokens.h"
#include "kernels/cpu/sequence_kernels.h"
#include "kernels/philox.h"

namespace plumbline {
namespace {

// block_max: [R, blocks of kTokenBlock]; row_max: [R].
struct Maxima {
  float* block_max;
  float* row_max;
};

void FindMaxima(ThreadPool& pool, CpuArithmetic arithmetic, const ConstTensor& logits, const Maxima& out) {
  constexpr int64_t kBlocksPerTask = 64;
  const int64_t rows = logits.dim(0), vocab = logits.dim(1), blocks = NumTokenBlocks(vocab);
  const int64_t pieces = (blocks + kBlocksPerTask - 1) / kBlocksPerTask;
  const auto max_of_row = SequenceKernelsOf(arithmetic).max_of_row;
  pool.ParallelFor(rows * pieces, [&](int64_t task, int) {
    const int64_t r = task / pieces, first = task % pieces * kBlocksPerTask;
    for (int64_t block = first; block < std::min(blocks, first + kBlocksPerTask); ++block) {
      out.block_max[r * blocks + block] = max_of_row(logits.as<float>() + r * vocab + block * kTokenBlock,
                                                     std::min(kTokenBlock, vocab - block * kTokenBlock));
    }
  });
  for (int64_t r = 0; r < rows; ++r) {
    out.row_max[r] = *std::max_element(out.block_max + r * blocks, out.block_max + (r + 1) * blocks);
  }
}

}  // namespace

void CpuOps::DoConcatColumns(const ConcatColumnsArgs& args) {
  const int64_t rows = args.out.dim(0), vocab = args.out.dim(1), columns = args.parts.dim(2);
  pool_.ParallelFor(rows, [&](int64_t r, int) {
    for (int64_t part = 0; part * columns < vocab; ++part) {
      std::memcpy(args.out.as<float>() + r * vocab + part * columns,
                  args.parts.as<float>() + (part * rows + r) * columns,
                  std::min(columns, vocab - part * columns) * sizeof(float));
    }
  });
}

void CpuOps::DoPenalties(const PenaltiesArgs& args) {
  const int64_t vocab = args.logits.dim(1);
  pool_.ParallelFor(args.logits.dim(0), [&](int64_t r, int) {
    const float repetition = args.repetition.as<float>()[r], presence = args.presence.as<float>()[r];
    const float frequency = args.frequency.as<float>()[r];
    const int32_t end = args.entry_begin.as<int32_t>()[r + 1];
    for (int32_t e = args.entry_begin.as<int32_t>()[r]; e < end; ++e) {
      float& x = args.logits.as<float>()[r * vocab + args.token.as<int32_t>()[e]];
      const int32_t count = args.count.as<int32_t>()[e];
      if (args.seen.as<int32_t>()[e] != 0) x = x > 0 ? x / repetition : x * repetition;
      x -= frequency * static_cast<float>(count) + (count > 0 ? presence : 0.0f);
      x += args.bias.as<float>()[e];
    }
  });
}

namespace {

// What a row of Sample needs at hand.
struct DrawRow {
  const float* logits;      // [V]
  const float* block_max;   // [blocks of kTokenBlock]
  const double* p;          // [V], or null where nothing needs all of them
  int64_t vocab;
  float temperature, max;   // max: of logit / temperature
  float top_p, min_p;
  int64_t top_k;
  double uniform;

  double P(int32_t token) const {
    return p != nullptr ? p[token] : std::exp(static_cast<double>(logits[token] / temperature) - max);
  }
};

bool NeedsAllP(float temperature, int32_t top_k) { return temperature != 0 && top_k <= 0; }

// The first token of a list of `size` whose prefix sum of p exceeds uniform * sum; token_at(i) names the list's entries.
template <typename TokenAt>
int32_t FirstPast(const DrawRow& row, int64_t size, const TokenAt& token_at) {
  double sum = 0, prefix = 0;
  for (int64_t i = 0; i < size; ++i) sum += row.P(token_at(i));
  for (int64_t i = 0; i < size; ++i) {
    prefix += row.P(token_at(i));
    if (prefix > row.uniform * sum) return token_at(i);
  }
  return token_at(size - 1);
}

// The list in id order, tokens below min_p left out.
int32_t DrawFromAll(const DrawRow& row) {
  double sum = 0, prefix = 0;
  int32_t last = 0;
  for (int64_t v = 0; v < row.vocab; ++v) sum += row.p[v] >= row.min_p ? row.p[v] : 0.0;
  for (int64_t v = 0; v < row.vocab; ++v) {
    if (!(row.p[v] >= row.min_p)) continue;
    prefix += row.p[v];
    last = static_cast<int32_t>(v);
    if (prefix > row.uniform * sum) return last;
  }
  return last;
}

// How many of the `size` best tokens remain of at most row.top_k after min_p and top_p; -1 when that takes more of them.
// `sum` is the sum of p over the whole list, or below zero when the list is `best` itself; `error` its relative error
// against the sum in list order.
struct ListSum {
  double sum, error;
};
int64_t KeptOf(const DrawRow& row, const int32_t* best, int64_t size, ListSum all) {
  int64_t allowed = 0;
  while (allowed < size && row.P(best[allowed]) >= row.min_p) ++allowed;
  const bool is_whole_list = all.sum < 0 || allowed < size || size == row.vocab;
  if (is_whole_list) {
    all = {0, 0};
    for (int64_t i = 0; i < allowed; ++i) all.sum += row.P(best[i]);
  }
  const double low = row.top_p * all.sum * (1 - all.error), high = row.top_p * all.sum * (1 + all.error);
  double prefix = 0;
  for (int64_t kept = 0; kept < allowed; ++kept) {
    if (kept > 0 && prefix >= high) return kept;
    if (kept > 0 && prefix >= low) return -1;  // within rounding of the threshold: only the full order can tell
    prefix += row.P(best[kept]);
  }
  return is_whole_list || prefix >= high ? allowed : -1;
}

// `order` is scratch for V tokens.
int32_t Draw(const DrawRow& row, int32_t* order) {
  if (row.top_k <= 0 && !(row.top_p < 1)) return DrawFromAll(row);
  ListSum all = {-1, 0};
  int64_t size = std::min(row.top_k, row.vocab);
  if (row.top_k <= 0) {
    all.sum = 0;
    for (int64_t v = 0; v < row.vocab; ++v) all.sum += row.p[v] >= row.min_p ? row.p[v] : 0.0;
    all.error = static_cast<double>(row.vocab) * 0x1p-51;  // two sums of V positive terms in any order
    size = std::min<int64_t>(64, row.vocab);
  }
  const TokenBlocks blocks = {row.logits, row.block_max, row.vocab};
  while (true) {
    SelectBest(blocks, size, order);
    const int64_t kept = KeptOf(row, order, size, all);
    if (kept >= 0) return FirstPast(row, std::max<int64_t>(kept, 1), [&](int64_t i) { return order[i]; });
    size = std::min(size * 16, row.vocab);
  }
}

}  // namespace

void CpuOps::DoSample(const SampleArgs& args) {
  const int64_t rows = args.logits.dim(0), vocab = args.logits.dim(1);
  const int64_t blocks = NumTokenBlocks(vocab);
  const float* logits = args.logits.as<float>();
  const float* temperature = args.temperature.as<float>();
  const int32_t* top_k = args.top_k.as<int32_t>();
  bool needs_p = false;
  for (int64_t r = 0; r < rows; ++r) needs_p |= NeedsAllP(temperature[r], top_k[r]);
  double* p = shared_.Get<double>((needs_p ? rows * vocab : 0) + rows * blocks);
  float* block_max = reinterpret_cast<float*>(p + (needs_p ? rows * vocab : 0));  // [rows, blocks]
  float* maxes = block_max + rows * blocks;                                        // [rows]
  FindMaxima(pool_, arithmetic_, args.logits, {block_max, maxes});
  if (needs_p) {
    constexpr int64_t kTokensPerTask = 8192;
    const int64_t pieces = (vocab + kTokensPerTask - 1) / kTokensPerTask;
    pool_.ParallelFor(rows * pieces, [&](int64_t task, int) {
      const int64_t r = task / pieces, begin = task % pieces * kTokensPerTask;
      if (!NeedsAllP(temperature[r], top_k[r])) return;
      const double max = maxes[r] / temperature[r];
      for (int64_t v = begin; v < std::min(vocab, begin + kTokensPerTask); ++v) {
        p[r * vocab + v] = std::exp(static_cast<double>(logits[r * vocab + v] / temperature[r]) - max);
      }
    });
  }
  pool_.ParallelFor(rows, [&](int64_t r, int thread) {
    const TokenBlocks tokens = {logits + r * vocab, block_max + r * blocks, vocab};
    if (temperature[r] == 0) {
      args.tokens.as<int32_t>()[r] = FirstOfValue(tokens, maxes[r]);
      return;
    }
    const DrawRow row = {.logits = tokens.logits,
                         .block_max = tokens.block_max,
                         .p = NeedsAllP(temperature[r], top_k[r]) ? p + r * vocab : nullptr,
                         .vocab = vocab,
                         .temperature = temperature[r],
                         .max = maxes[r] / temperature[r],
                         .top_p = args.top_p.as<float>()[r],
                         .min_p = args.min_p.as<float>()[r],
                         .top_k = top_k[r],
                         .uniform = UniformDraw(args.seed.as<int64_t>()[r], args.position.as<int32_t>()[r])};
    args.tokens.as<int32_t>()[r] = Draw(row, scratch_[thread].Get<int32_t>(vocab));
  });
}

void CpuOps::DoLogprobs(const LogprobsArgs& args) {
  const int64_t rows = args.logits.dim(0), vocab = args.logits.dim(1);
  const int64_t leaf = (vocab + kNumLeaves - 1) / kNumLeaves, blocks = NumTokenBlocks(vocab);
  const int64_t num_top = args.top_ids.empty() ? 0 : args.top_ids.dim(1);
  const float* logits = args.logits.as<float>();
  double* sums = shared_.Get<double>(rows * (kNumLeaves * 2 + blocks));  // [rows, kNumLeaves]
  int64_t* before = reinterpret_cast<int64_t*>(sums + rows * kNumLeaves);  // [rows, kNumLeaves]
  float* block_max = reinterpret_cast<float*>(before + rows * kNumLeaves);
  float* maxes = block_max + rows * blocks;
  FindMaxima(pool_, arithmetic_, args.logits, {block_max, maxes});
  pool_.ParallelFor(rows * kNumLeaves, [&](int64_t task, int) {
    const float* row = logits + task / kNumLeaves * vocab;
    const double max = maxes[task / kNumLeaves];
    const int64_t target = args.targets.as<int32_t>()[task / kNumLeaves];
    const int64_t begin = task % kNumLeaves * leaf, end = std::min(vocab, begin + leaf);
    double sum = 0;
    int64_t count = 0;
    for (int64_t v = begin; v < end; ++v) {
      sum += std::exp(row[v] - max);
      count += row[v] > row[target] || (row[v] == row[target] && v < target);
    }
    sums[task] = sum;
    before[task] = count;
  });
  pool_.ParallelFor(rows, [&](int64_t r, int thread) {
    const double* sum = sums + r * kNumLeaves;
    const double lse = maxes[r] + std::log(((sum[0] + sum[1]) + (sum[2] + sum[3])) +
                                           ((sum[4] + sum[5]) + (sum[6] + sum[7])));
    int64_t rank = 1;
    for (int i = 0; i < kNumLeaves; ++i) rank += before[r * kNumLeaves + i];
    const float* row = logits + r * vocab;
    args.target_ranks.as<int32_t>()[r] = static_cast<int32_t>(rank);
    args.target_logprobs.as<float>()[r] = static_cast<float>(row[args.targets.as<int32_t>()[r]] - lse);
    if (num_top == 0) return;
    int32_t* order = scratch_[thread].Get<int32_t>(num_top);
    SelectBest({row, block_max + r * blocks, vocab}, num_top, order);
    for (int64_t i = 0; i < num_top; ++i) {
      args.top_ids.as<int32_t>()[r * num_top + i] = order[i];
      args.top_logprobs.as<float>()[r * num_top + i] = static_cast<float>(row[order[i]] - lse);
    }
  });
}

}  // namespace plumbline
