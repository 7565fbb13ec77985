// CausalConv: a thread takes a run of rows in four neighbouring channels (one, where they do not lie in fours) and keeps the
// window in registers. The first run of a sequence alone reads its state, so it also writes it: nobody else is disturbed.
// Limited by bytes: 2 (x) + 4 (out) per element of a prompt, of which the runs' overlap adds 3 / 8 of x from the cache.
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/sequence_runs.cuh"
#include "kernels/cuda/types.cuh"

namespace plumbline {
namespace {

using namespace cuda;

constexpr int kThreads = 128;
constexpr int kRunRows = 8;
constexpr int kMaxWidth = kRunRows;  // only the first run's rows may reach the state

template <typename T, int kNum>
struct alignas(kNum * sizeof(T)) Channels {
  T values[kNum];
};

template <typename T>
struct ConvStep {
  float* out;           // [T, C]
  T* state;             // [num_slots, C, W - 1]
  const T* x;           // [T, C], x_stride
  const float* weight;  // [C, W]
  const int32_t *row_begin, *start, *state_slot;
  int64_t x_stride, num_channels;
  int num_sequences, width;
};

// Inputs are right-aligned in a window of kWidth, the newest last; those that the width does not reach stay zero, as do
// their weights.
template <typename T, int kWidth, int kNum>
__global__ void __launch_bounds__(kThreads) ConvKernel(ConvStep<T> step) {
  using Inputs = Channels<T, kNum>;
  const int64_t channel = (int64_t{blockIdx.y} * kThreads + threadIdx.x) * kNum;
  const RowRun run = FindRun<kRunRows>(step.row_begin, step.num_sequences, blockIdx.x);
  const int begin = step.row_begin[run.sequence], num_rows = step.row_begin[run.sequence + 1] - begin;
  if (run.first >= num_rows || channel >= step.num_channels) return;
  const int width = kWidth == kMaxWidth ? step.width : kWidth, unused = kWidth - width, history = width - 1;
  const T* x = step.x + begin * step.x_stride + channel;  // of the sequence's first row
  T* state = step.state + (step.state_slot[run.sequence] * step.num_channels + channel) * history;
  const bool is_fresh = step.start[run.sequence] == 0;

  float weights[kWidth][kNum], window[kWidth][kNum];
#pragma unroll
  for (int c = 0; c < kNum; ++c) {
#pragma unroll
    for (int j = 0; j < kWidth; ++j) weights[j][c] = j >= unused ? step.weight[(channel + c) * width + j - unused] : 0.0f;
  }
  // window[j] for the run's first row is the input of row first - (kWidth - 1) + j, from the state where that is negative.
#pragma unroll
  for (int j = 0; j < kWidth - 1; ++j) {
    const int row = run.first - (kWidth - 1) + j;
    if (row >= 0) {
      const Inputs inputs = *reinterpret_cast<const Inputs*>(x + row * step.x_stride);
#pragma unroll
      for (int c = 0; c < kNum; ++c) window[j][c] = j >= unused ? ToF32(inputs.values[c]) : 0.0f;
    } else {
#pragma unroll
      for (int c = 0; c < kNum; ++c)
        window[j][c] = is_fresh || j < unused ? 0.0f : ToF32(state[c * history + row + history]);
    }
  }
  if (run.first == 0) {
    // The last inputs, oldest first: of the old state those that this step's rows do not push out, which window still holds.
#pragma unroll
    for (int j = 0; j < kWidth - 1; ++j) {
      if (j < unused) continue;
      const int row = num_rows - (kWidth - 1) + j;
#pragma unroll
      for (int c = 0; c < kNum; ++c) {
        float old = 0;
#pragma unroll
        for (int i = 0; i < kWidth - 1; ++i) {
          if (i == row + kWidth - 1) old = window[i][c];
        }
        state[c * history + j - unused] = row >= 0 ? x[row * step.x_stride + c] : FromF32<T>(old);
      }
    }
  }
  const int count = min(kRunRows, num_rows - run.first);
#pragma unroll
  for (int i = 0; i < kRunRows; ++i) {
    if (i >= count) break;
    const int64_t row = run.first + i;
    const Inputs inputs = *reinterpret_cast<const Inputs*>(x + row * step.x_stride);
    Channels<float, kNum> results;
#pragma unroll
    for (int c = 0; c < kNum; ++c) {
      window[kWidth - 1][c] = ToF32(inputs.values[c]);
      float sum = 0;
#pragma unroll
      for (int j = 0; j < kWidth; ++j) sum = fmaf(weights[j][c], window[j][c], sum);
      results.values[c] = sum / (1.0f + expf(-sum));
#pragma unroll
      for (int j = 0; j < kWidth - 1; ++j) window[j][c] = window[j + 1][c];
    }
    *reinterpret_cast<Channels<float, kNum>*>(step.out + (begin + row) * step.num_channels + channel) = results;
  }
}

template <typename T, int kWidth, int kNum>
void LaunchConv(const ConvStep<T>& step, int64_t num_rows, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(NumRuns(num_rows, step.num_sequences, kRunRows)),
                  BlocksFor(step.num_channels, kThreads * kNum));
  Launch({grid, kThreads, 0, stream}, ConvKernel<T, kWidth, kNum>, step);
}

bool IsAligned(const void* data, size_t num_bytes) { return reinterpret_cast<uintptr_t>(data) % num_bytes == 0; }

}  // namespace

void CudaOps::DoCausalConv(const CausalConvArgs& args) {
  PL_CHECK(args.weight.dim(1) <= kMaxWidth);
  VisitFloat(args.x.dtype(), [&]<typename T>() {
    const SequenceRows& sequences = args.sequences;
    const ConvStep<T> step = {.out = args.out.as<float>(),
                              .state = Data<T>(args.state),
                              .x = Data<T>(args.x),
                              .weight = args.weight.as<float>(),
                              .row_begin = sequences.row_begin.as<int32_t>(),
                              .start = sequences.start.as<int32_t>(),
                              .state_slot = sequences.state_slot.as<int32_t>(),
                              .x_stride = args.x.row_stride(),
                              .num_channels = args.out.dim(1),
                              .num_sequences = static_cast<int>(sequences.num_sequences()),
                              .width = static_cast<int>(args.weight.dim(1))};
    const bool in_fours = step.num_channels % 4 == 0 && step.x_stride % 4 == 0 && IsAligned(step.x, 4 * sizeof(T)) &&
                          IsAligned(step.out, 4 * sizeof(float));
    if (step.width != 4) return LaunchConv<T, kMaxWidth, 1>(step, args.out.dim(0), stream());
    if (!in_fours) return LaunchConv<T, 4, 1>(step, args.out.dim(0), stream());
    LaunchConv<T, 4, 4>(step, args.out.dim(0), stream());
  });
}

}  // namespace plumbline
