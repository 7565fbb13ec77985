// Embedding, sums of partials, norms: a block of threads per row. Sums over a row: thread t takes elements t, t + kThreads,
// ... in ascending order, then BlockSum; a function of D alone.
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/primitives.cuh"
#include "kernels/cuda/types.cuh"

namespace plumbline {
namespace {

using namespace cuda;

constexpr int kThreads = 256;

// x[0] + x[stride], ... of num = 1, 2, 4 or 8 in the balanced tree.
PLUMBLINE_DEVICE float TreeOf(const float* x, int64_t stride, int num) {
  float sums[8];
  for (int i = 0; i < 8; ++i) sums[i] = i < num ? x[i * stride] : 0.0f;
  for (int width = num / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) sums[i] = sums[2 * i] + sums[2 * i + 1];
  }
  return sums[0];
}

template <typename T>
__global__ void EmbedKernel(float* out, const int32_t* tokens, const T* table, int64_t vocab_begin, int64_t num_rows,
                            int64_t hidden) {
  const int64_t row = blockIdx.x, entry = tokens[row] - vocab_begin;
  const bool is_here = entry >= 0 && entry < num_rows;
  for (int64_t i = threadIdx.x; i < hidden; i += blockDim.x) {
    out[row * hidden + i] = is_here ? ToF32(table[entry * hidden + i]) : 0.0f;
  }
}

// out = base + the tree of partials, base left out when null.
__global__ void AddTreeKernel(float* out, const float* base, const float* partials, int num_partials, int64_t count) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const float sum = TreeOf(partials + i, count, num_partials);
  out[i] = base == nullptr ? sum : base[i] + sum;
}

struct NormOfRows {
  const float* h;
  const int32_t* rows;  // or null: all
  int64_t hidden;
  const float* weight;
  float weight_offset, eps;
};

template <typename T>
__global__ void RmsNormKernel(T* out, int64_t out_stride, NormOfRows norm) {
  const int64_t row = norm.rows == nullptr ? int64_t{blockIdx.x} : norm.rows[blockIdx.x];
  const float* h = norm.h + row * norm.hidden;
  float squares = 0;
  for (int64_t i = threadIdx.x; i < norm.hidden; i += blockDim.x) squares = fmaf(h[i], h[i], squares);
  const float mean = BlockSum(squares, SharedMemory<float>()) / static_cast<float>(norm.hidden);
  const float factor = 1.0f / sqrtf(mean + norm.eps);
  for (int64_t i = threadIdx.x; i < norm.hidden; i += blockDim.x) {
    out[blockIdx.x * out_stride + i] = FromF32<T>(h[i] * factor * (norm.weight_offset + norm.weight[i]));
  }
}

// h += the tree of partials, then the norm: one pass over what the row's threads hold.
template <typename T>
__global__ void AddRmsNormKernel(T* out, int64_t out_stride, float* h, const float* partials, int num_partials,
                                 int64_t num_rows, NormOfRows norm) {
  const int64_t first = int64_t{blockIdx.x} * norm.hidden, slice = num_rows * norm.hidden;
  float squares = 0;
  for (int64_t i = threadIdx.x; i < norm.hidden; i += blockDim.x) {
    const float x = h[first + i] + TreeOf(partials + first + i, slice, num_partials);
    h[first + i] = x;
    squares = fmaf(x, x, squares);
  }
  const float mean = BlockSum(squares, SharedMemory<float>()) / static_cast<float>(norm.hidden);
  const float factor = 1.0f / sqrtf(mean + norm.eps);
  for (int64_t i = threadIdx.x; i < norm.hidden; i += blockDim.x) {  // a thread reads back what it wrote
    out[blockIdx.x * out_stride + i] = FromF32<T>(h[first + i] * factor * (norm.weight_offset + norm.weight[i]));
  }
}

constexpr size_t kNormShared = kThreads / kWarpSize * sizeof(float);

unsigned Rows(int64_t rows) { return static_cast<unsigned>(rows); }

}  // namespace

void CudaOps::DoEmbed(const EmbedArgs& args) {
  const int64_t hidden = args.out.dim(1);
  VisitFloat(args.table.dtype(), [&]<typename T>() {
    Launch({Rows(args.out.dim(0)), kThreads, 0, stream()}, EmbedKernel<T>, args.out.as<float>(), args.tokens.as<int32_t>(),
           Data<T>(args.table), args.vocab_begin, args.table.dim(0), hidden);
  });
}

void CudaOps::DoTreeSum(const TreeSumArgs& args) {
  const int64_t count = args.out.num_elements();
  Launch({BlocksFor(count, kThreads), kThreads, 0, stream()}, AddTreeKernel, args.out.as<float>(),
         static_cast<const float*>(nullptr), args.partials.as<float>(), static_cast<int>(args.partials.dim(0)), count);
}

void CudaOps::DoReduceAdd(const ReduceAddArgs& args) {
  const int64_t count = args.h.num_elements();
  Launch({BlocksFor(count, kThreads), kThreads, 0, stream()}, AddTreeKernel, args.h.as<float>(), args.h.as<float>(),
         args.partials.as<float>(), static_cast<int>(args.partials.dim(0)), count);
}

void CudaOps::DoReduceAddRmsNorm(const ReduceAddRmsNormArgs& args) {
  const int64_t rows = args.h.dim(0);
  const NormOfRows norm = {args.h.as<float>(), nullptr, args.h.dim(1), args.weight.as<float>(),
                           args.weight_offset, args.eps};
  VisitFloat(args.out.dtype(), [&]<typename T>() {
    const LaunchShape shape = {Rows(rows), kThreads, kNormShared, stream()};
    if (args.partials.empty()) {
      Launch(shape, RmsNormKernel<T>, Data<T>(args.out), args.out.row_stride(), norm);
    } else {
      Launch(shape, AddRmsNormKernel<T>, Data<T>(args.out), args.out.row_stride(), args.h.as<float>(),
             args.partials.as<float>(), static_cast<int>(args.partials.dim(0)), rows, norm);
    }
  });
}

void CudaOps::DoRmsNormRows(const RmsNormRowsArgs& args) {
  const NormOfRows norm = {args.h.as<float>(),     args.rows.as<int32_t>(), args.h.dim(1),
                           args.weight.as<float>(), args.weight_offset,      args.eps};
  VisitFloat(args.out.dtype(), [&]<typename T>() {
    Launch({Rows(args.rows.dim(0)), kThreads, kNormShared, stream()}, RmsNormKernel<T>, Data<T>(args.out),
           args.out.row_stride(), norm);
  });
}

}  // namespace plumbline
