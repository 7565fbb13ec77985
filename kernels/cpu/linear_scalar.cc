// Linear for any processor.
#include <cstring>

#include "kernels/cpu/linear_kernels_impl.h"
#include "kernels/cpu/simd_scalar.h"

namespace plumbline {
namespace {

struct Bf16Weight {
  static float Load(const void* weight, int64_t k, int column) {
    return ToFloat(static_cast<const Bf16*>(weight)[Index(k, column)]);
  }
  static int64_t Index(int64_t k, int column) {
    return k / 32 * 1024 + column / 16 * 512 + k % 32 / 2 * 32 + column % 16 * 2 + k % 2;
  }
};

struct F16Weight {
  static float Load(const void* weight, int64_t k, int column) {
    return ToFloat(static_cast<const F16*>(weight)[Bf16Weight::Index(k, column)]);
  }
};

struct F32Weight {
  static float Load(const void* weight, int64_t k, int column) {
    return static_cast<const float*>(weight)[k * 32 + column];
  }
};

constexpr int kTileRows = 4;

template <typename Weight>
void Multiply(const MultiplyArgs& args) {
  for (int64_t row = 0; row < args.num_rows; row += kTileRows) {
    const int64_t left = args.num_rows - row;
    const int rows = left < kTileRows ? static_cast<int>(left) : kTileRows;
    const float* panel = static_cast<const float*>(args.panel) + row * args.num_k;
    float sum[kTileRows][32] = {};
    for (int r = 0; args.accumulate && r < rows; ++r) {
      std::memcpy(sum[r], args.out + (row + r) * 32, sizeof sum[r]);
    }
    for (int64_t k = 0; k < args.num_k; ++k, panel += rows) {
      float w[32];
      for (int column = 0; column < 32; ++column) w[column] = Weight::Load(args.weight, k, column);
      for (int r = 0; r < rows; ++r) {
        const float x = panel[r];
        for (int column = 0; column < 32; ++column) sum[r][column] += x * w[column];
      }
    }
    for (int r = 0; r < rows; ++r) {
      std::memcpy(args.out + (row + r) * 32, sum[r], sizeof sum[r]);
    }
    if (args.sink.take) args.sink.take(args.sink.context, row, rows, args.out + row * 32);
  }
}

void Transpose(void* to, int64_t to_stride, const void* from, int64_t from_stride) {
  for (int c = 0; c < 16; ++c) {
    char* row = static_cast<char*>(to) + c * to_stride;
    const char* column = static_cast<const char*>(from) + c * 4;
    for (int r = 0; r < 16; ++r) std::memcpy(row + r * 4, column + r * from_stride, 4);
  }
}

constexpr PanelFormat kFormat = {
    .tile_rows = kTileRows, .k_group = 1, .chunk_k = 256, .dtype = DType::kF32};

}  // namespace

const LinearTable kLinearScalar = {
    .bf16 = {kFormat, Multiply<Bf16Weight>, SaturateMultiplyAdd<Scalar>},
    .f16 = {kFormat, Multiply<F16Weight>, SaturateMultiplyAdd<Scalar>},
    .f32 = {kFormat, Multiply<F32Weight>, SaturateMultiplyAdd<Scalar>},
    .add = LinearElementwise<Scalar>::Add,
    .add_scaled = LinearElementwise<Scalar>::AddScaled,
    .store = LinearElementwise<Scalar>::Store,
    .store_gated = LinearElementwise<Scalar>::StoreGated,
    .read = ReadMemory<Scalar>,
    .transpose = Transpose,
};

}  // namespace plumbline
