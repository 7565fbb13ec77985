// CausalConv for a block of channels of one sequence, row by row: the channels of a row lie side by side in memory, rows
// are a page or more apart.
#pragma once

#include "kernels/cpu/sequence_kernels.h"
#include "kernels/cpu/small_gemm.h"

namespace plumbline {
namespace {

inline constexpr int kRowsAhead = 8;

template <typename Simd, typename T>
void ConvKernel(const ConvTask& task) {
  const int channels = task.num_channels, width = task.width, history = width - 1;
  T* state = static_cast<T*>(task.state);
  alignas(64) float weights[kMaxConvWidth][kMaxConvChannels];
  alignas(64) float inputs[kMaxConvWidth][kMaxConvChannels];  // row t in line (history + t) % width
  alignas(64) T line[kMaxConvChannels];
  for (int j = 0; j < width; ++j) {
    for (int c = 0; c < channels; ++c) weights[j][c] = task.weight[c * width + j];
  }
  for (int j = 0; j < history; ++j) {
    for (int c = 0; c < channels && !task.fresh; ++c) line[c] = state[c * history + j];
    for (int c = 0; c < channels; c += 16) {
      Simd::Store(inputs[j] + c, task.fresh ? Simd::Zero() : Simd::LoadN(line + c, Least(16, channels - c)));
    }
  }
  for (int64_t t = 0; t < task.num_rows; ++t) {
    const float* x = task.x + t * task.x_stride;
    float* out = task.out + t * task.out_stride;
    float* newest = inputs[(history + t) % width];
    const float* taps[kMaxConvWidth];  // oldest first
    for (int j = 0; j < width; ++j) taps[j] = inputs[(t + j) % width];
    // Rows are pages apart, which the processor does not foresee.
    const int64_t ahead = task.num_rows - 1 - t < kRowsAhead ? task.num_rows - 1 - t : kRowsAhead;
    const float* x_ahead = x + ahead * task.x_stride;
    for (int c = 0; c < channels; c += 16) {
      const int lanes = Least(16, channels - c);
      __builtin_prefetch(x_ahead + c);
      const auto last = Simd::Round(Simd::LoadN(x + c, lanes), static_cast<T*>(nullptr));
      Simd::Store(newest + c, last);
      auto sum = Simd::Mul(Simd::Load(weights[0] + c), Simd::Load(taps[0] + c));
      for (int j = 1; j < history; ++j) sum = Simd::Fma(Simd::Load(weights[j] + c), Simd::Load(taps[j] + c), sum);
      sum = Simd::Fma(Simd::Load(weights[history] + c), last, sum);
      Simd::StoreN(out + c, Simd::Silu(sum), lanes);
    }
  }
  for (int j = 0; j < history; ++j) {
    const float* input = inputs[(task.num_rows + j) % width];
    for (int c = 0; c < channels; c += 16) Simd::Store(line + c, Simd::Load(input + c));
    for (int c = 0; c < channels; ++c) state[c * history + j] = line[c];
  }
}

}  // namespace
}  // namespace plumbline
