// CausalConv for a block of channels of one sequence, some rows at a time: the channels of a row lie side by side in
// memory, rows are a page or more apart.
#pragma once

#include "kernels/cpu/sequence_kernels.h"
#include "kernels/cpu/small_gemm.h"

namespace plumbline {
namespace {

inline constexpr int kConvRows = 8;  // at a time; their inputs stay in registers from row to row

// The inputs before the rows at hand, oldest first.
using ConvHistory = float[kMaxConvWidth - 1][kMaxConvChannels];

// Rows [0, num_rows) of 16 channels. kWidth: the task's, or 0 for any.
template <typename Simd, typename T, int kWidth>
void ConvColumn(const ConvTask& task, const float (&weights)[kMaxConvWidth][kMaxConvChannels], ConvHistory& history,
                const T* x, float* out, int channel, int num_rows) {
  const int width = kWidth > 0 ? kWidth : task.width;
  const int lanes = Least(16, task.num_channels - channel);
  typename Simd::F inputs[kWidth > 0 ? kWidth : kMaxConvWidth];
#pragma GCC unroll 8
  for (int j = 0; j < width - 1; ++j) inputs[j] = Simd::Load(history[j] + channel);
  const auto row = [&](int t) __attribute__((always_inline)) {
    inputs[width - 1] = Simd::LoadN(x + t * task.x_stride, lanes);
    auto sum = Simd::Mul(Simd::Load(weights[0] + channel), inputs[0]);
#pragma GCC unroll 8
    for (int j = 1; j < width; ++j) sum = Simd::Fma(Simd::Load(weights[j] + channel), inputs[j], sum);
    Simd::StoreN(out + t * task.out_stride, Simd::Silu(sum), lanes);
#pragma GCC unroll 8
    for (int j = 0; j < width - 1; ++j) inputs[j] = inputs[j + 1];
  };
  if (num_rows == kConvRows) {
#pragma GCC unroll 8
    for (int t = 0; t < kConvRows; ++t) row(t);
  } else {
    for (int t = 0; t < num_rows; ++t) row(t);
  }
#pragma GCC unroll 8
  for (int j = 0; j < width - 1; ++j) Simd::Store(history[j] + channel, inputs[j]);
}

template <typename Simd, typename T>
void ConvKernel(const ConvTask& task) {
  const int channels = task.num_channels, width = task.width, num_history = width - 1;
  T* state = static_cast<T*>(task.state);
  alignas(64) float weights[kMaxConvWidth][kMaxConvChannels];
  alignas(64) ConvHistory history;
  alignas(64) T line[kMaxConvChannels];
  for (int j = 0; j < width; ++j) {
    for (int c = 0; c < channels; ++c) weights[j][c] = task.weight[c * width + j];
  }
  for (int j = 0; j < num_history; ++j) {
    for (int c = 0; c < channels && !task.fresh; ++c) line[c] = state[c * num_history + j];
    for (int c = 0; c < channels; c += 16) {
      Simd::Store(history[j] + c, task.fresh ? Simd::Zero() : Simd::LoadN(line + c, Least(16, channels - c)));
    }
  }
  const auto column = width == 4 ? ConvColumn<Simd, T, 4> : ConvColumn<Simd, T, 0>;
  for (int64_t t = 0; t < task.num_rows; t += kConvRows) {
    const T* x = static_cast<const T*>(task.x) + t * task.x_stride;
    float* out = task.out + t * task.out_stride;
    const int rows = task.num_rows - t < kConvRows ? static_cast<int>(task.num_rows - t) : kConvRows;
    const int rows_ahead = task.num_rows - t - rows < kConvRows ? static_cast<int>(task.num_rows - t) - rows : kConvRows;
    for (int c = 0; c < channels; c += 16) {
      // Rows are pages apart, which the processor does not foresee.
      for (int i = 0; i < rows_ahead; ++i) __builtin_prefetch(x + (rows + i) * task.x_stride + c);
      column(task, weights, history, x + c, out + c, c, rows);
    }
  }
  for (int j = 0; j < num_history; ++j) {
    for (int c = 0; c < channels; c += 16) Simd::Store(line + c, Simd::Load(history[j] + c));
    for (int c = 0; c < channels; ++c) state[c * num_history + j] = line[c];
  }
}

}  // namespace
}  // namespace plumbline
