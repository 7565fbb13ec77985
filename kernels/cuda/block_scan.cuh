// What lies before a thread in its block: scans and searches in thread order.
#pragma once

#include "kernels/cuda/primitives.cuh"

namespace plumbline::cuda {

// Of values in thread order: those of the threads before this one, and of all. T: T{} changes nothing, Then is
// associative, Up shuffles.
template <typename T>
struct Scanned {
  T before, all;
};
// scratch: one T per warp.
template <typename T>
PLUMBLINE_DEVICE Scanned<T> BlockScan(const T& own, T* scratch) {
  const unsigned lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  T through = own;
#pragma unroll
  for (unsigned step = 1; step < kWarpSize; step *= 2) {
    const T left = through.Up(step);
    if (lane >= step) through = left.Then(through);
  }
  __syncthreads();  // scratch may be in use
  if (lane == kWarpSize - 1) scratch[warp] = through;
  __syncthreads();
  Scanned<T> result{};
  for (unsigned w = 0; w < blockDim.x / kWarpSize; ++w) {
    if (w == warp) result.before = result.all;
    result.all = result.all.Then(scratch[w]);
  }
  const T left = through.Up(1);
  if (lane > 0) result.before = result.before.Then(left);
  return result;
}

struct Count {
  unsigned value = 0;
  PLUMBLINE_DEVICE Count Then(const Count& next) const { return {value + next.value}; }
  PLUMBLINE_DEVICE Count Up(unsigned lanes) const { return {__shfl_up_sync(kAllLanes, value, lanes)}; }
};

// The lowest thread where the condition holds; blockDim.x when there is none.
PLUMBLINE_DEVICE unsigned FirstThreadWhere(bool condition, unsigned* scratch) {
  const unsigned lanes = __ballot_sync(kAllLanes, condition ? 1 : 0), warp = threadIdx.x / kWarpSize;
  __syncthreads();  // scratch may be in use
  if (threadIdx.x % kWarpSize == 0) {
    scratch[warp] = lanes != 0 ? warp * kWarpSize + static_cast<unsigned>(__ffs(static_cast<int>(lanes))) - 1 : blockDim.x;
  }
  __syncthreads();
  unsigned first = blockDim.x;
  for (unsigned w = 0; w < blockDim.x / kWarpSize; ++w) first = scratch[w] < first ? scratch[w] : first;
  return first;
}

}  // namespace plumbline::cuda
