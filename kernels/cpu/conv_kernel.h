// CausalConv for a block of channels of one sequence: sixteen channels at a time, rows in order.
#pragma once

#include "kernels/cpu/sequence_kernels.h"
#include "kernels/cpu/small_gemm.h"

namespace plumbline {
namespace {

template <typename Simd, typename T>
void ConvLanes(const ConvTask& task, int channel, int lanes) {
  using F = typename Simd::F;
  const int width = task.width, history = width - 1;
  T* state = static_cast<T*>(task.state) + channel * history;
  F weights[kMaxConvWidth], inputs[kMaxConvWidth];  // inputs: oldest first, the current row last
  for (int j = 0; j < width; ++j) {
    alignas(64) float column[16] = {};
    for (int c = 0; c < lanes; ++c) column[c] = task.weight[(channel + c) * width + j];
    weights[j] = Simd::Load(column);
  }
  for (int j = 0; j < history; ++j) {
    alignas(64) T column[16] = {};
    if (!task.fresh) {
      for (int c = 0; c < lanes; ++c) column[c] = state[c * history + j];
    }
    inputs[j] = Simd::Load(column);
  }
  const float* x = task.x + channel;
  float* out = task.out + channel;
  for (int64_t t = 0; t < task.num_rows; ++t, x += task.x_stride, out += task.out_stride) {
    inputs[history] = Simd::Round(Simd::LoadN(x, lanes), static_cast<T*>(nullptr));
    F sum = Simd::Mul(weights[0], inputs[0]);
    for (int j = 1; j < width; ++j) sum = Simd::Fma(weights[j], inputs[j], sum);
    Simd::StoreN(out, Simd::Silu(sum), lanes);
    for (int j = 0; j < history; ++j) inputs[j] = inputs[j + 1];
  }
  for (int j = 0; j < history; ++j) {
    alignas(64) T column[16];
    Simd::Store(column, inputs[j]);
    for (int c = 0; c < lanes; ++c) state[c * history + j] = column[c];
  }
}

template <typename Simd, typename T>
void ConvKernel(const ConvTask& task) {
  for (int channel = 0; channel < task.num_channels; channel += 16) {
    ConvLanes<Simd, T>(task, channel, Least(16, task.num_channels - channel));
  }
}

}  // namespace
}  // namespace plumbline
