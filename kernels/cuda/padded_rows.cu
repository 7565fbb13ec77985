#include <cuda_runtime.h>

#include "kernels/cuda/padded_rows.cuh"

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/primitives.cuh"
#include "kernels/cuda/types.cuh"

namespace plumbline::cuda {
namespace {

constexpr int kThreads = 256;

int64_t PaddedColumns(const LinearShape& shape) { return PackedWeight::Of(shape).num_steps * kStepColumns; }

template <typename T>
__global__ void PadKernel(T* padded, const T* x, int64_t x_stride, LinearShape shape, int64_t num_columns, int64_t count) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const int64_t column = i % num_columns, padded_leaf = num_columns / shape.num_leaves, leaf_k = LeafColumns(shape);
  const int64_t k = column / padded_leaf * leaf_k + column % padded_leaf;
  const bool is_there = column % padded_leaf < leaf_k && k < shape.k;
  padded[i] = is_there ? x[i / num_columns * x_stride + k] : FromF32<T>(0.0f);
}

}  // namespace

bool NeedsPadding(const ConstTensor& x, const LinearShape& shape) {
  const bool is_aligned =
      reinterpret_cast<uintptr_t>(x.raw()) % 16 == 0 && x.row_stride() * static_cast<int64_t>(SizeOf(x.dtype())) % 16 == 0;
  return !is_aligned || PaddedColumns(shape) != shape.k;
}

size_t PaddedBytes(const ConstTensor& x, const LinearShape& shape) {
  return NeedsPadding(x, shape) ? x.dim(0) * PaddedColumns(shape) * SizeOf(x.dtype()) : 0;
}

ConstTensor PaddedRows(const ConstTensor& x, const LinearShape& shape, void* memory, cudaStream_t stream) {
  if (!NeedsPadding(x, shape)) return x;
  const int64_t columns = PaddedColumns(shape), count = x.dim(0) * columns;
  VisitFloat(x.dtype(), [&]<typename T>() {
    Launch({BlocksFor(count, kThreads), kThreads, 0, stream}, PadKernel<T>, static_cast<T*>(memory), x.as<T>(),
           x.row_stride(), shape, columns, count);
  });
  return {memory, x.dtype(), {x.dim(0), columns}};
}

}  // namespace plumbline::cuda
