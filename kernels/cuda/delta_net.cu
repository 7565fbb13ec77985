// GatedDeltaNet: prompt rows in chunks (delta_net_prepare.cu, delta_net_chunks.cu), then generated rows
// (delta_net_recurrent.cu), then the gated norm of all, a warp per row and head. The norm is limited by bytes: 4 (o) + 4 (z)
// + the output's per element.
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/delta_net_step.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/primitives.cuh"
#include "kernels/cuda/sequence_runs.cuh"
#include "kernels/cuda/types.cuh"

namespace plumbline {
namespace {

using namespace cuda;

constexpr int kNormThreads = 256;

template <typename T>
struct GatedNorm {
  T* out;              // [T, Hv * Q], out_stride
  const float* o;      // [T, Hv, Q]
  const float* gates;  // [T, gates_stride]: z first
  const float* norm;   // [Q]
  int64_t num_rows, out_stride, gates_stride;
  int num_heads, dim;
  float eps;
  bool is_sigmoid;
};

// The squares of lane l are those of columns l, l + 32, ... in ascending order.
template <typename T>
__global__ void __launch_bounds__(kNormThreads) GatedNormKernel(GatedNorm<T> args) {
  const int64_t task = int64_t{blockIdx.x} * (kNormThreads / kWarpSize) + threadIdx.x / kWarpSize;
  const int64_t row = task / args.num_heads, column = task % args.num_heads * args.dim;
  if (row >= args.num_rows) return;
  const int lane = threadIdx.x % kWarpSize;
  const float *o = args.o + task * args.dim, *z = args.gates + row * args.gates_stride + column;
  T* out = args.out + row * args.out_stride + column;
  float squares = 0;
#pragma unroll 4
  for (int i = lane; i < args.dim; i += kWarpSize) squares = fmaf(o[i], o[i], squares);
  const float factor = 1.0f / sqrtf(WarpSum(squares) / static_cast<float>(args.dim) + args.eps);
#pragma unroll 4
  for (int i = lane; i < args.dim; i += kWarpSize) {
    const float gate = 1.0f / (1.0f + expf(-z[i])), activation = args.is_sigmoid ? gate : z[i] * gate;
    out[i] = FromF32<T>(args.norm[i] * (o[i] * factor) * activation);
  }
}

// Pieces of one buffer, each aligned to 256 bytes.
class Pieces {
 public:
  explicit Pieces(void* memory) : memory_(static_cast<std::byte*>(memory)) {}
  template <typename T>
  void Take(T*& piece, int64_t count) {
    piece = memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + used_);
    used_ += (count * sizeof(T) + 255) / 256 * 256;
  }
  size_t used() const { return used_; }

 private:
  std::byte* memory_;
  size_t used_ = 0;
};

// The intermediates of a step; without memory their size alone.
size_t TakeIntermediates(void* memory, DeltaNetStep& step, ChunkOperands& operands) {
  const int64_t chunks = NumRuns(step.num_rows, step.num_sequences, kChunkTokens);
  const int64_t keys = chunks * step.num_key_heads * kChunkTiles * PaddedKeyTiles(step.key_dim) * kTileVectors;
  const int64_t lower = chunks * step.num_heads * kLowerTiles * kTileVectors;
  Pieces pieces(memory);
  pieces.Take(step.out, step.num_rows * step.num_heads * step.value_dim);
  pieces.Take(operands.keys, keys);
  pieces.Take(operands.queries, keys);
  pieces.Take(operands.keys_transposed, keys);
  pieces.Take(operands.solution, lower);
  pieces.Take(operands.weights, lower);
  pieces.Take(operands.decays, chunks * step.num_heads * kChunkTokens);
  return pieces.used();
}

}  // namespace

void CudaOps::DoGatedDeltaNet(const GatedDeltaNetArgs& args) {
  const SequenceRows& sequences = args.sequences;
  DeltaNetStep step = {.out = nullptr,
                       .state = args.state.as<float>(),
                       .conv = args.conv.as<float>(),
                       .gates = args.gates.as<float>(),
                       .a_log = args.a_log.as<float>(),
                       .dt_bias = args.dt_bias.as<float>(),
                       .row_begin = sequences.row_begin.as<int32_t>(),
                       .start = sequences.start.as<int32_t>(),
                       .num_prompt_rows = sequences.num_prompt_rows.as<int32_t>(),
                       .state_slot = sequences.state_slot.as<int32_t>(),
                       .num_rows = args.out.dim(0),
                       .num_sequences = static_cast<int>(sequences.num_sequences()),
                       .num_key_heads = static_cast<int>(args.num_key_heads),
                       .num_heads = static_cast<int>(args.state.dim(1)),
                       .key_dim = static_cast<int>(args.state.dim(2)),
                       .value_dim = static_cast<int>(args.state.dim(3))};
  ChunkOperands operands;
  TakeIntermediates(workspace_.Take(TakeIntermediates(nullptr, step, operands)), step, operands);
  PrepareChunks(step, operands, stream());
  WalkChunks(step, operands, device_.num_multiprocessors(), stream());
  RunRecurrence(step, stream());
  VisitFloat(args.out.dtype(), [&]<typename T>() {
    const GatedNorm<T> norm = {.out = Data<T>(args.out),
                               .o = step.out,
                               .gates = step.gates,
                               .norm = args.norm.as<float>(),
                               .num_rows = step.num_rows,
                               .out_stride = args.out.row_stride(),
                               .gates_stride = args.gates.dim(1),
                               .num_heads = step.num_heads,
                               .dim = step.value_dim,
                               .eps = args.eps,
                               .is_sigmoid = args.activation == GateActivation::kSigmoid};
    const int64_t warps = step.num_rows * step.num_heads;
    Launch({BlocksFor(warps, kNormThreads / kWarpSize), kNormThreads, 0, stream()}, GatedNormKernel<T>, norm);
  });
}

}  // namespace plumbline
