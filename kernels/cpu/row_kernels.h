// Kernels that work on one row at a time: residual stream, norms, rotary embedding. A sum over a row is kept in four
// partial sums of sixteen lanes, element i in lane i % 64, added in a fixed tree.
#pragma once

#include <math.h>

#include "kernels/cpu/sequence_kernels.h"

namespace plumbline {
namespace {

template <typename Simd, typename T>
void WidenRow(float* out, const void* in, int64_t n) {
  const T* from = static_cast<const T*>(in);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) Simd::Store(out + i, Simd::Load(from + i));
  if (i < n) Simd::StoreN(out + i, Simd::LoadN(from + i, n - i), n - i);
}

// The tree over kCount slices of n <= 16 lanes.
template <typename Simd, int kCount>
typename Simd::F TreeLanesOf(const float* at, int64_t slice, int n) {
  if constexpr (kCount == 1) {
    return n == 16 ? Simd::Load(at) : Simd::LoadN(at, n);
  } else {
    return Simd::Add(TreeLanesOf<Simd, kCount / 2>(at, slice, n),
                     TreeLanesOf<Simd, kCount / 2>(at + kCount / 2 * slice, slice, n));
  }
}

template <typename Simd, int kCount>
void AddSlices(const SliceSum& sum, int64_t n) {
  for (int64_t i = 0; i < n; i += 16) {
    const int lanes = n - i < 16 ? static_cast<int>(n - i) : 16;
    typename Simd::F x = TreeLanesOf<Simd, kCount>(sum.partials + i, sum.slice, lanes);
    if (sum.addend != nullptr) x = Simd::Add(Simd::LoadN(sum.addend + i, lanes), x);
    Simd::StoreN(sum.out + i, x, lanes);
  }
}

template <typename Simd>
void AddPartials(const SliceSum& sum, int64_t n) {
  switch (sum.num_partials) {
    case 1:
      return AddSlices<Simd, 1>(sum, n);
    case 2:
      return AddSlices<Simd, 2>(sum, n);
    case 4:
      return AddSlices<Simd, 4>(sum, n);
    default:
      return AddSlices<Simd, 8>(sum, n);
  }
}

template <typename Simd>
__attribute__((always_inline)) inline float SumOfSquares(const float* x, int64_t n) {
  typename Simd::F sum[4] = {Simd::Zero(), Simd::Zero(), Simd::Zero(), Simd::Zero()};
  int64_t i = 0;
  for (; i + 64 <= n; i += 64) {
    for (int j = 0; j < 4; ++j) {
      const auto lanes = Simd::Load(x + i + 16 * j);
      sum[j] = Simd::Fma(lanes, lanes, sum[j]);
    }
  }
  for (int j = 0; i < n; i += 16, ++j) {
    const auto lanes = Simd::LoadN(x + i, n - i < 16 ? n - i : 16);
    sum[j] = Simd::Fma(lanes, lanes, sum[j]);
  }
  return Simd::Sum(Simd::Add(Simd::Add(sum[0], sum[1]), Simd::Add(sum[2], sum[3])));
}

// out = x * factor * (offset + weight)
template <typename Simd, typename T>
void ScaleRow(T* out, const float* x, const float* weight, float offset, float factor, int64_t n) {
  const auto factors = Simd::Set(factor), offsets = Simd::Set(offset);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const auto scale = Simd::Add(offsets, Simd::Load(weight + i));
    Simd::Store(out + i, Simd::Mul(Simd::Mul(Simd::Load(x + i), factors), scale));
  }
  if (i < n) {
    const int rest = static_cast<int>(n - i);
    const auto scale = Simd::Add(offsets, Simd::LoadN(weight + i, rest));
    Simd::StoreN(out + i, Simd::Mul(Simd::Mul(Simd::LoadN(x + i, rest), factors), scale), rest);
  }
}

template <typename Simd, typename T>
void RmsNormRow(const RmsNormRowTask& task, int64_t n) {
  const float factor = 1.0f / sqrtf(SumOfSquares<Simd>(task.x, n) / static_cast<float>(n) + task.eps);
  ScaleRow<Simd>(static_cast<T*>(task.out), task.x, task.weight, task.weight_offset, factor, n);
}

template <typename Simd, typename T>
void NormRopeHead(const NormRopeTask& task) {
  const int dim = task.head_dim, half = task.rotary_half;
  const float* head = task.x;
  T* out = static_cast<T*>(task.out);
  if (task.norm != nullptr) {
    const float factor = 1.0f / sqrtf(SumOfSquares<Simd>(head, dim) / static_cast<float>(dim) + task.eps);
    ScaleRow<Simd>(task.scratch, head, task.norm, task.norm_offset, factor, dim);
    head = task.scratch;
  }
  for (int i = 0; i < half; i += 16) {
    const int n = half - i < 16 ? half - i : 16;
    const auto a = Simd::LoadN(head + i, n), b = Simd::LoadN(head + half + i, n);
    const auto cos = Simd::LoadN(task.cos + i, n), sin = Simd::LoadN(task.sin + i, n);
    Simd::StoreN(out + i, Simd::Sub(Simd::Mul(a, cos), Simd::Mul(b, sin)), n);
    Simd::StoreN(out + half + i, Simd::Add(Simd::Mul(b, cos), Simd::Mul(a, sin)), n);
  }
  for (int i = 2 * half; i < dim; i += 16) {
    const int n = dim - i < 16 ? dim - i : 16;
    Simd::StoreN(out + i, Simd::LoadN(head + i, n), n);
  }
}

// The largest of x[0, n), NaN left out when something else is there.
template <typename Simd>
float MaxOfRow(const float* x, int64_t n) {
  const auto lowest = Simd::Set(-INFINITY);
  typename Simd::F largest[4] = {lowest, lowest, lowest, lowest};
  int64_t i = 0;
  for (; i + 64 <= n; i += 64) {
    for (int j = 0; j < 4; ++j) largest[j] = Simd::Max(Simd::Load(x + i + 16 * j), largest[j]);
  }
  for (; i < n; i += 16) {
    const int rest = n - i < 16 ? static_cast<int>(n - i) : 16;
    largest[0] = Simd::Max(Simd::FirstN(Simd::LoadN(x + i, rest), rest, -INFINITY), largest[0]);
  }
  return Simd::MaxOf(Simd::Max(Simd::Max(largest[0], largest[1]), Simd::Max(largest[2], largest[3])));
}

}  // namespace
}  // namespace plumbline
