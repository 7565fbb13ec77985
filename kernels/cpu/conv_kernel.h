// CausalConv for some channels of one sequence, 16 channels of a few rows at a time: the channels of a row lie side by
// side in memory, rows are a page or more apart.
#pragma once

#include "kernels/cpu/flush_subnormals.h"
#include "kernels/cpu/sequence_kernels.h"
#include "kernels/cpu/small_gemm.h"

namespace plumbline {
namespace {

inline constexpr int kConvRows = 8;  // at a time; their inputs stay in registers from row to row

inline int64_t ConvolutionFloats(int num_columns, int width) { return int64_t{2 * width - 1} * num_columns * 16; }

// The channels of one or more tasks of a sequence, in columns of 16, each with its weights and with the inputs that its
// next rows need.
template <typename Simd, typename T>
class Convolution {
 public:
  static constexpr int kMaxTasks = 3;
  // memory: [ConvolutionFloats(num_columns, width)], 64-byte aligned.
  Convolution(float* memory, int num_columns, int width)
      : weights_(memory), history_(memory + int64_t{width} * num_columns * 16), stride_(num_columns * 16),
        width_(width) {}

  __attribute__((noinline)) void Add(const ConvTask& task) {
    tasks_[num_tasks_] = task;
    first_column_[num_tasks_++] = num_columns_;
    const T* state = static_cast<const T*>(task.state);
    alignas(64) T lanes[16];
    for (int c = 0; c < task.num_channels; c += 16, ++num_columns_) {
      const int n = Least(16, task.num_channels - c);
      for (int j = 0; j < width_; ++j) {
        float* weights = weights_ + j * stride_ + num_columns_ * 16;
        for (int i = 0; i < 16; ++i) weights[i] = i < n ? task.weight[(c + i) * width_ + j] : 0.0f;
      }
      for (int j = 0; j < width_ - 1; ++j) {
        for (int i = 0; i < n && !task.fresh; ++i) lanes[i] = state[(c + i) * (width_ - 1) + j];
        Simd::Store(History(j, num_columns_), task.fresh ? Simd::Zero() : Simd::LoadN(lanes, n));
      }
    }
  }
  int num_columns() const { return num_columns_; }

  // Rows [row, row + count) of a column, count <= kConvRows, in ascending order of rows. out: the first row's lanes; asks
  // for the num_ahead rows that follow.
  void Rows(int column, int64_t row, int count, int num_ahead, float* out, int64_t out_stride) {
    int index = num_tasks_ - 1;
    while (first_column_[index] > column) --index;
    const ConvTask& task = tasks_[index];
    const int channel = (column - first_column_[index]) * 16;
    const Place place = {static_cast<const T*>(task.x) + row * task.x_stride + channel, task.x_stride, out, out_stride,
                         Least(16, task.num_channels - channel)};
    // Rows are pages apart, which the processor does not foresee.
    for (int t = count; t < count + num_ahead; ++t) __builtin_prefetch(place.x + t * place.x_stride);
    if (width_ == 4) return RowsOfWidth<4>(column, count, place);
    RowsOfWidth<0>(column, count, place);
  }

  // The last inputs, back into the tasks' states.
  __attribute__((noinline)) void StoreStates() {
    alignas(64) T lanes[16];
    for (int index = 0; index < num_tasks_; ++index) {
      const ConvTask& task = tasks_[index];
      T* state = static_cast<T*>(task.state);
      for (int c = 0; c < task.num_channels; c += 16) {
        for (int j = 0; j < width_ - 1; ++j) {
          Simd::Store(lanes, Simd::Load(History(j, first_column_[index] + c / 16)));
          for (int i = 0; i < Least(16, task.num_channels - c); ++i) state[(c + i) * (width_ - 1) + j] = lanes[i];
        }
      }
    }
  }

 private:
  struct Place {
    const T* x;
    int64_t x_stride;
    float* out;
    int64_t out_stride;
    int lanes;
  };

  float* History(int j, int column) { return history_ + j * stride_ + column * 16; }

  template <int kWidth>  // or 0 for any
  __attribute__((noinline)) void RowsOfWidth(int column, int count, const Place& place) {
    const int width = kWidth > 0 ? kWidth : width_;
    typename Simd::F inputs[kWidth > 0 ? kWidth : kMaxConvWidth];  // oldest first
#pragma GCC unroll 8
    for (int j = 0; j < width - 1; ++j) inputs[j] = Simd::Load(History(j, column));
    const float* weights = weights_ + column * 16;
    const auto row = [&](int t) __attribute__((always_inline)) {
      inputs[width - 1] = Simd::LoadN(place.x + t * place.x_stride, place.lanes);
      auto sum = Simd::Mul(Simd::Load(weights), inputs[0]);
#pragma GCC unroll 8
      for (int j = 1; j < width; ++j) sum = Simd::Fma(Simd::Load(weights + j * stride_), inputs[j], sum);
      Simd::StoreN(place.out + t * place.out_stride, Simd::Silu(sum), place.lanes);
#pragma GCC unroll 8
      for (int j = 0; j < width - 1; ++j) inputs[j] = inputs[j + 1];
    };
    int t = 0;
    if constexpr (Simd::kParts == 1) {  // where the rows' inputs fit the registers
      if (count == kConvRows) {
#pragma GCC unroll 8
        for (; t < kConvRows; ++t) row(t);
      }
    }
    for (; t < count; ++t) row(t);
#pragma GCC unroll 8
    for (int j = 0; j < width - 1; ++j) Simd::Store(History(j, column), inputs[j]);
  }

  float* weights_;  // [width, columns * 16]
  float* history_;  // [width - 1, columns * 16], oldest first
  int64_t stride_;
  int width_;
  ConvTask tasks_[kMaxTasks];
  int first_column_[kMaxTasks] = {};
  int num_tasks_ = 0, num_columns_ = 0;
};

template <typename Simd, typename T>
void ConvKernel(const ConvTask& task) {
  const FlushSubnormals flush;
  constexpr int kMaxColumns = kMaxConvChannels / 16;
  alignas(64) float memory[(2 * kMaxConvWidth - 1) * kMaxColumns * 16];
  Convolution<Simd, T> convolution(memory, kMaxColumns, task.width);
  convolution.Add(task);
  for (int64_t row = 0; row < task.num_rows; row += kConvRows) {
    const int count = static_cast<int>(task.num_rows - row < kConvRows ? task.num_rows - row : kConvRows);
    const int64_t rest = task.num_rows - row - count;
    const int num_ahead = static_cast<int>(rest < kConvRows ? rest : kConvRows);
    for (int column = 0; column < convolution.num_columns(); ++column) {
      convolution.Rows(column, row, count, num_ahead, task.out + row * task.out_stride + column * 16, task.out_stride);
    }
  }
  convolution.StoreStates();
}

}  // namespace
}  // namespace plumbline
