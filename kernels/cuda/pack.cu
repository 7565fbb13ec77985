// Packed weights (packed_weight.cuh). The source goes up as it is, in pieces, and is put in its places on the device:
// limited by the copies, as the pieces' own traffic on the device is an order faster.
#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/packed_weight.cuh"
#include "kernels/cuda/primitives.cuh"
#include "kernels/cuda/types.cuh"

namespace plumbline {
namespace {

using namespace cuda;

constexpr int kThreads = 256;
constexpr int64_t kPieceBytes = int64_t{4} << 20;

template <typename T, typename Source>
__global__ void PackKernel(T* packed, const Source* source, LinearShape shape, int64_t num_steps, int64_t first_row,
                           int64_t count) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const PackedPlace place = PlaceOf(shape, first_row + i / shape.k, i % shape.k);
  packed[PackedIndex(place, num_steps, sizeof(T))] = FromF32<T>(ToF32(source[i]));
}

}  // namespace

int64_t CudaOps::PackedBytes(const LinearShape& shape) const { return PackedWeight::Of(shape).num_bytes(shape.dtype); }

void CudaOps::DoPackLinear(const PackLinearArgs& args) {
  const LinearShape& shape = args.shape;
  if (shape.k == 0) return;
  const int64_t num_rows = args.source.dim(0), row_bytes = shape.k * static_cast<int64_t>(SizeOf(args.source.dtype()));
  const int64_t piece_rows = std::clamp<int64_t>(kPieceBytes / row_bytes, 1, num_rows);
  const bool is_whole = args.source.dim(1) == shape.k;
  void* device_piece = workspace_.Take(piece_rows * row_bytes);
  std::vector<std::byte> columns(is_whole ? 0 : piece_rows * row_bytes);
  for (int64_t row = 0; row < num_rows; row += piece_rows) {
    const int64_t rows = std::min(piece_rows, num_rows - row), count = rows * shape.k;
    const void* from = args.source.At(row, 0);
    if (!is_whole) {
      for (int64_t i = 0; i < rows; ++i) {
        std::memcpy(columns.data() + i * row_bytes, args.source.At(row + i, args.first_column), row_bytes);
      }
      from = columns.data();
    }
    const Tensor piece(device_piece, args.source.dtype(), {rows, shape.k});
    device_.Upload(piece, from);
    VisitFloat(shape.dtype, [&]<typename T>() {
      VisitFloat(piece.dtype(), [&]<typename Source>() {
        Launch({BlocksFor(count, kThreads), kThreads, 0, stream()}, PackKernel<T, Source>,
               static_cast<T*>(args.out.raw()), static_cast<const Source*>(piece.raw()), shape,
               PackedWeight::Of(shape).num_steps, args.first_row + row, count);
      });
    });
  }
}

}  // namespace plumbline
