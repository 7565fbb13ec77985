// A row of Sample: its settings, which tokens it lists with which p, and the draw from a list that is in order.
#pragma once

#include <cstdint>

#include "kernels/cuda/sequential_sum.cuh"
#include "kernels/cuda/token_order.cuh"
#include "kernels/philox.h"

namespace plumbline::cuda {

struct SampleSettings {  // of all rows
  const float* temperature;
  const int32_t* top_k;
  const float* top_p;
  const float* min_p;
  const int64_t* seed;
  const int32_t* position;
};

struct DrawRow {
  float temperature, max, top_p, min_p;  // max: of logit / temperature
  int32_t top_k;

  PLUMBLINE_DEVICE bool is_greedy() const { return temperature == 0; }
  PLUMBLINE_DEVICE bool is_ordered() const { return top_k > 0 || top_p < 1; }
  PLUMBLINE_DEVICE double P(float logit) const { return exp(static_cast<double>(logit / temperature) - max); }
  // Whether the token is on the list; p above any min_p and no NaN.
  PLUMBLINE_DEVICE bool Lists(float logit) const {
    if (min_p > 0) return P(logit) >= min_p;
    const double x = static_cast<double>(logit / temperature) - max;
    return x == x;
  }
  // 0 when the token is not on the list: adding it changes nothing.
  PLUMBLINE_DEVICE double ListedP(float logit) const {
    const double p = P(logit);
    return p >= min_p ? p : 0.0;
  }
};

PLUMBLINE_DEVICE DrawRow DrawRowOf(const SampleSettings& all, int64_t row, float best_logit) {
  const float temperature = all.temperature[row];
  return {temperature, best_logit / temperature, all.top_p[row], all.min_p[row], all.top_k[row]};
}

// Tokens that are listed, by how far they lie under the row's largest: kBins bins of 1/64 each, the last one without an
// end. A token of a lower bin comes earlier in the order, whatever the rounding. mass: p in units of 2^-44, rounded down.
inline constexpr int kBins = 2048, kBinsPerThread = kBins / kTokenThreads;
inline constexpr double kMassUnit = 0x1p-44;
using Mass = unsigned long long;  // NOLINT: what atomicAdd takes

PLUMBLINE_DEVICE int BinOf(const DrawRow& row, float logit) {
  const float distance = (row.max - logit / row.temperature) * 64.0f;
  return !(distance < kBins - 1) ? kBins - 1 : distance > 0 ? static_cast<int>(distance) : 0;
}
PLUMBLINE_DEVICE Mass MassOf(double p) { return static_cast<Mass>((p < 1 ? p : 1.0) / kMassUnit); }

struct Tally {
  unsigned count = 0;
  Mass mass = 0;
  PLUMBLINE_DEVICE Tally Then(const Tally& next) const { return {count + next.count, mass + next.mass}; }
  PLUMBLINE_DEVICE Tally Up(unsigned lanes) const {
    return {__shfl_up_sync(kAllLanes, count, lanes), __shfl_up_sync(kAllLanes, mass, lanes)};
  }
};

// Bins [0, bin] hold what the row draws from, as far as the bins tell; `count` tokens of all.count.
struct Cut {
  int bin;
  unsigned count;
  Tally all;

  PLUMBLINE_DEVICE bool is_whole() const { return count == all.count; }
  // Bounds of the sum of p over the list, in any order of additions.
  PLUMBLINE_DEVICE double low() const { return static_cast<double>(all.mass) * kMassUnit * (1 - error()); }
  PLUMBLINE_DEVICE double high() const { return static_cast<double>(all.mass + all.count) * kMassUnit * (1 + error()); }
  PLUMBLINE_DEVICE double error() const { return (static_cast<double>(all.count) + 4) * 0x1p-51; }
};
struct CutScratch {
  Tally tallies[kTokenWarps];
  Cut cut;
};

// counts, masses: [kBins] of this row.
PLUMBLINE_DEVICE Cut FindCut(const DrawRow& row, const unsigned* counts, const Mass* masses, CutScratch* scratch) {
  Tally bins[kBinsPerThread], own;
#pragma unroll
  for (int i = 0; i < kBinsPerThread; ++i) {
    bins[i] = {counts[threadIdx.x * kBinsPerThread + i], masses[threadIdx.x * kBinsPerThread + i]};
    own = own.Then(bins[i]);
  }
  const auto [before, all] = BlockScan(own, scratch->tallies);
  const Cut whole = {kBins - 1, all.count, all};
  const unsigned wanted = row.top_k > 0 && static_cast<unsigned>(row.top_k) < all.count ? row.top_k : all.count;
  const double wanted_mass = row.top_p * whole.high() / kMassUnit;
  const auto is_enough = [&](const Tally& tally) {
    return row.top_k > 0 ? tally.count >= wanted : static_cast<double>(tally.mass) >= wanted_mass;
  };
  if (threadIdx.x == 0) scratch->cut = whole;
  __syncthreads();
  bool was_enough = threadIdx.x > 0 && is_enough(before);
  Tally through = before;
#pragma unroll
  for (int i = 0; i < kBinsPerThread; ++i) {
    through = through.Then(bins[i]);
    if (!was_enough && is_enough(through)) {  // in one thread at most
      scratch->cut = {static_cast<int>(threadIdx.x) * kBinsPerThread + i, through.count, all};
      was_enough = true;
    }
  }
  __syncthreads();
  return scratch->cut;
}

// The sum of p_at(0), p_at(1), ..., until it exceeds the limit.
template <typename At>
PLUMBLINE_DEVICE Reached AddUntil(const At& p_at, int64_t size, double limit, SumScratch* scratch) {
  double sum = 0;
  for (int64_t tile = 0; tile < size; tile += kTokenChunk) {
    double p[kTokensPerThread];
#pragma unroll
    for (int i = 0; i < kTokensPerThread; ++i) {
      const int64_t at = tile + threadIdx.x * kTokensPerThread + i;
      p[i] = at < size ? p_at(at) : 0.0;
    }
    const Reached reached = AddInOrder(sum, p, limit, scratch);
    if (reached.index >= 0) return {tile + reached.index, reached.sum};
    sum = reached.sum;
  }
  return {-1, sum};
}

// The largest limit that a sum of at least `threshold` > 0 exceeds.
PLUMBLINE_DEVICE double JustBelow(double threshold) { return std::bit_cast<double>(std::bit_cast<uint64_t>(threshold) - 1); }

// The index drawn from the first `size` >= 1 tokens in order, p_at(i) their p. Without top_k they may be fewer than are
// listed (`is_whole` is false); then `cut` bounds the list's sum, and -1 is returned when these tokens cannot tell.
struct OrderedTokens {
  int64_t size;
  bool is_whole;
  Cut cut;
};
template <typename At>
PLUMBLINE_DEVICE int64_t DrawInOrder(const DrawRow& row, double uniform, const OrderedTokens& tokens, const At& p_at,
                                     SumScratch* scratch) {
  constexpr double kNoLimit = 0x1.fffffffffffffp1023;
  int64_t size = tokens.size;
  double low = tokens.cut.low(), high = tokens.cut.high();
  if (row.top_k > 0 && row.top_k < size) size = row.top_k;
  const bool is_exact = row.top_k > 0 || tokens.is_whole;
  if (is_exact) low = high = AddUntil(p_at, size, kNoLimit, scratch).sum;
  // The shortest prefix that reaches top_p of the sum: between a low and a high bound of that.
  const double from = row.top_p * low, to = row.top_p * high;
  Reached kept = {0, p_at(0)};
  if (from > 0) kept = AddUntil(p_at, size, JustBelow(from), scratch);
  if (!is_exact && (kept.index < 0 || !(kept.sum >= to))) return -1;
  const int64_t last = kept.index < 0 ? size - 1 : kept.index;
  const int64_t drawn = AddUntil(p_at, last + 1, uniform * kept.sum, scratch).index;
  return drawn < 0 ? last : drawn;
}

}  // namespace plumbline::cuda
