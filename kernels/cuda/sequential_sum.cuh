// The f64 sum of a list from its first entry to its last, every addition rounded, by a block of threads: the bits of a plain
// loop. Entries >= 0.
//
// While the sum s stays between powers of two it is a multiple of one unit u (its last place), and s + p rounds to s plus
// a whole number of units. That number is p / u rounded to nearest; only when p / u lies halfway does it depend on s, and
// then only on whether s / u is even. So an entry is two integers (Steps): how many units the sum moves from an even and
// from an odd place. Pairs compose associatively, and the list is a scan over them. The few threads in whose entries the sum
// reaches the next power of two add theirs in a plain loop, and the scan goes on behind them with the larger unit.
//
// Limited by the f64 units through the exp() of each entry (about 40 instructions), not by the latency of an addition (8
// cycles and more, 1.2 ms for 248320 entries).
#pragma once

#include <bit>
#include <cstdint>

#include "kernels/cuda/block_scan.cuh"
#include "kernels/cuda/primitives.cuh"

namespace plumbline::cuda {

// All of the sum's own units: its bits as an integer count them, also below the smallest normal number.
struct Steps {
  uint64_t from_even = 0, from_odd = 0;

  // This, then `next`. Numbers past 2^53 mean only that the sum has left its power of two, so they are cut before they wrap.
  PLUMBLINE_DEVICE Steps Then(const Steps& next) const {
    constexpr uint64_t kMost = uint64_t{1} << 60;
    const uint64_t even = from_even + ((from_even & 1) != 0 ? next.from_odd : next.from_even);
    const uint64_t odd = from_odd + ((from_odd & 1) != 0 ? next.from_even : next.from_odd);
    return {even < kMost ? even : kMost, odd < kMost ? odd : kMost};
  }
  PLUMBLINE_DEVICE Steps Up(unsigned lanes) const {
    return {__shfl_up_sync(kAllLanes, from_even, lanes), __shfl_up_sync(kAllLanes, from_odd, lanes)};
  }
};

// Exponent field of the unit's power of two.
PLUMBLINE_DEVICE int UnitOfSum(uint64_t sum_bits) {
  const int exponent = static_cast<int>(sum_bits >> 52);
  return exponent > 1 ? exponent : 1;
}

// Of an entry p >= 0 on a sum of this unit.
PLUMBLINE_DEVICE Steps StepsOf(double p, int unit) {
  const uint64_t bits = std::bit_cast<uint64_t>(p);
  const int exponent = static_cast<int>(bits >> 52);
  const uint64_t fraction = bits & ((uint64_t{1} << 52) - 1);
  const uint64_t mantissa = exponent > 0 ? fraction | uint64_t{1} << 52 : fraction;
  const int shift = unit - (exponent > 1 ? exponent : 1);
  if (shift < 0) return {uint64_t{1} << 53, uint64_t{1} << 53};  // p alone is past the power of two
  if (shift == 0) return {mantissa, mantissa};
  if (shift > 53) return {};  // below half a unit
  const uint64_t whole = mantissa >> shift, rest = mantissa & ((uint64_t{1} << shift) - 1),
                 half = uint64_t{1} << (shift - 1);
  if (rest != half) {
    const uint64_t steps = whole + (rest > half ? 1 : 0);
    return {steps, steps};
  }
  return {whole + (whole & 1), whole + (~whole & 1)};  // to the even place
}

PLUMBLINE_DEVICE uint64_t BitsAfter(uint64_t sum_bits, const Steps& steps) {
  return sum_bits + ((sum_bits & 1) != 0 ? steps.from_odd : steps.from_even);
}

struct SumScratch {
  Steps steps[32];
  unsigned first[32];
  double sum;
  int index;
};

// index: of the first entry at which the sum exceeds the limit, and the sum up to it; or -1, and the sum of all.
struct Reached {
  int64_t index;
  double sum;
};

// Adds the block's entries, kItems per thread, to `sum` <= limit. All threads call it and get the same.
template <int kItems>
PLUMBLINE_DEVICE Reached AddInOrder(double sum, const double (&p)[kItems], double limit, SumScratch* scratch) {
  for (unsigned begin = 0;;) {
    const uint64_t bits = std::bit_cast<uint64_t>(sum);
    const int unit = UnitOfSum(bits);
    Steps own;
    if (threadIdx.x >= begin) {
#pragma unroll
      for (int i = 0; i < kItems; ++i) own = own.Then(StepsOf(p[i], unit));
    }
    const auto [before, all] = BlockScan(own, scratch->steps);
    const uint64_t after = BitsAfter(bits, before.Then(own));
    const bool stops = threadIdx.x >= begin && (UnitOfSum(after) != unit || std::bit_cast<double>(after) > limit);
    const unsigned stop = FirstThreadWhere(stops, scratch->first);
    if (stop == blockDim.x) return {-1, std::bit_cast<double>(BitsAfter(bits, all))};
    if (threadIdx.x == stop) {
      double running = std::bit_cast<double>(BitsAfter(bits, before));
      int index = -1;
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        if (index >= 0) continue;
        running += p[i];
        if (running > limit) index = static_cast<int>(stop) * kItems + i;
      }
      scratch->sum = running;
      scratch->index = index;
    }
    __syncthreads();
    sum = scratch->sum;
    if (scratch->index >= 0 || stop + 1 == blockDim.x) return {scratch->index, sum};
    begin = stop + 1;
  }
}

}  // namespace plumbline::cuda
