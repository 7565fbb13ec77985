// Kernels over a vector type V (simd_*.h), for the tables of linear_scalar.cc, linear_avx2.cc and
// linear_avx512.cc.
#pragma once

#include <cstdint>

#include "kernels/cpu/fetch.h"
#include "kernels/cpu/linear_kernels.h"
#include "kernels/cpu/vector_math.h"

namespace plumbline {
namespace {  // each instruction set compiles these for itself; the linker must not merge them

// f32 multiply-add kernel. Weight::kGroup rows of k are stored together at Weight::Row(weight, k);
// Weight::Load(row, g, column) gives V::kWidth columns of the g-th of them.
template <typename V, typename Weight, int kRows, int kVectors>
void MultiplyAddTile(const float* panel, const MultiplyArgs& args, int column, float* out) {
  using F32 = typename V::F32;
  F32 sum[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      sum[r][v] = args.accumulate ? V::Load(out + r * 32 + v * V::kWidth) : V::Set(0);
    }
  }
  for (int64_t k = 0; k < args.num_k; k += Weight::kGroup) {
    const typename Weight::Element* row = Weight::Row(args.weight, k);
#pragma GCC unroll 16
    for (int g = 0; g < Weight::kGroup; ++g, panel += kRows) {
      F32 w[kVectors];
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) w[v] = Weight::Load(row, g, column + v * V::kWidth);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const F32 x = V::Set(panel[r]);
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; ++v) sum[r][v] = V::MulAdd(x, w[v], sum[r][v]);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) V::Store(out + r * 32 + v * V::kWidth, sum[r][v]);
  }
}

// Calls tile<rows> for a run-time number of rows in [1, kMaxRows].
template <int kMaxRows, template <int> typename Tile>
struct ForRows {
  static void Run(int rows, const void* panel, const MultiplyArgs& args, float* out) {
    if (rows == kMaxRows) return Tile<kMaxRows>::Run(panel, args, out);
    if constexpr (kMaxRows > 1) ForRows<kMaxRows - 1, Tile>::Run(rows, panel, args, out);
  }
};

// Walks the row tiles of a panel.
template <int kMaxRows, typename Element, template <int> typename Tile>
void MultiplyRowTiles(const MultiplyArgs& args) {
  for (int64_t row = 0; row < args.num_rows; row += kMaxRows) {
    const int64_t left = args.num_rows - row;
    const int rows = left < kMaxRows ? static_cast<int>(left) : kMaxRows;
    const Element* panel = static_cast<const Element*>(args.panel) + row * args.num_k;
    float* out = args.out + row * 32;
    ForRows<kMaxRows, Tile>::Run(rows, panel, args, out);
    if (args.sink.take) args.sink.take(args.sink.context, row, rows, out);
  }
}

// LinearKernel::saturate for f32 multiply-adds: enough sums to hide the latency of one.
template <typename V>
int64_t SaturateMultiplyAdd(int64_t rounds) {
  constexpr int kSums = 12;
  typename V::F32 sums[kSums];
  const typename V::F32 factor = V::Set(0.5f);
  for (auto& sum : sums) sum = factor;
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < kSums; ++j) sums[j] = V::MulAdd(sums[j], factor, factor);
  }
  float total = 0;
  for (const auto& sum : sums) total += V::Sum(sum);
  volatile float sink = total;
  static_cast<void>(sink);
  return rounds * kSums * V::kWidth * 2;
}

// LinearTable::read.
template <typename V>
float ReadMemory(const void* memory, int64_t num_bytes) {
  constexpr int kSums = 64 / (4 * V::kWidth) * 4;  // of four cache lines
  typename V::F32 sums[kSums];
  for (auto& sum : sums) sum = V::Set(0.0f);
  const float* x = static_cast<const float*>(memory);
  const int64_t num_floats = num_bytes / 4;
  for (int64_t i = 0; i + kSums * V::kWidth <= num_floats; i += kSums * V::kWidth) {
#pragma GCC unroll 16
    for (int j = 0; j < kSums; ++j) sums[j] = V::Add(sums[j], V::Load(x + i + j * V::kWidth));
  }
  float total = 0;
  for (const auto& sum : sums) total += V::Sum(sum);
  return total;
}

template <typename V>
struct LinearElementwise {
  static void Add(float* sum, const float* x, int64_t n) {
    int64_t i = 0;
    for (; i + V::kWidth <= n; i += V::kWidth)
      V::Store(sum + i, V::Add(V::Load(sum + i), V::Load(x + i)));
    const int rest = static_cast<int>(n - i);
    if (rest > 0)
      V::StoreFirst(sum + i, V::Add(V::LoadFirst(sum + i, rest), V::LoadFirst(x + i, rest)), rest);
  }

  static void AddScaled(float* sum, const float* x, float scale, int64_t n) {
    const typename V::F32 s = V::Set(scale);
    int64_t i = 0;
    for (; i + V::kWidth <= n; i += V::kWidth) {
      V::Store(sum + i, V::Add(V::Load(sum + i), V::Mul(s, V::Load(x + i))));
    }
    const int rest = static_cast<int>(n - i);
    if (rest > 0) {
      V::StoreFirst(
          sum + i, V::Add(V::LoadFirst(sum + i, rest), V::Mul(s, V::LoadFirst(x + i, rest))), rest);
    }
  }

  static void Store(const StoreArgs& args) {
    if (args.streamed) return StoreStreamed(args);
    if (args.out_dtype == DType::kBf16 && args.num_columns == 32 && args.bias == nullptr) return StoreBf16Blocks(args);
    for (int64_t r = 0; r < args.num_rows; ++r) {
      const float* sums = args.sums + r * 32;
      const int64_t row = r * args.out_stride;
      FetchRow(args, row + kRowsAhead * args.out_stride);
      for (int i = 0; i < args.num_columns; i += V::kWidth) {
        const int lanes = Lanes(args.num_columns - i);
        const typename V::F32 value = V::Load(sums + i);
        StoreLanes(args, row + i, args.bias ? V::Add(value, V::LoadFirst(args.bias + i, lanes)) : value, lanes);
      }
    }
  }

  static void StoreBf16Blocks(const StoreArgs& args) {
    for (int64_t r = 0; r < args.num_rows; ++r) {
      const float* sums = args.sums + r * 32;
      uint16_t* out = static_cast<uint16_t*>(args.out) + r * args.out_stride;
      FetchForWriting(out + kRowsAhead * args.out_stride);
      if constexpr (V::kWidth == 16) {
        V::StoreBf16(out, V::Load(sums), V::Load(sums + 16));
      } else {
        for (int i = 0; i < 32; i += V::kWidth) V::StoreBf16(out + i, V::Load(sums + i));
      }
    }
  }

  static void StoreStreamed(const StoreArgs& args) {
    for (int64_t r = 0; r < args.num_rows; ++r) {
      const float* sums = args.sums + r * 32;
      float* out = static_cast<float*>(args.out) + r * args.out_stride;
      for (int i = 0; i < 32; i += V::kWidth) {
        const typename V::F32 value = V::Load(sums + i);
        V::Stream(out + i, args.bias ? V::Add(value, V::Load(args.bias + i)) : value);
      }
    }
  }

  static void StoreGated(const StoreArgs& args) {
    for (int64_t r = 0; r < args.num_rows; ++r) {
      const float* sums = args.sums + r * 32;
      const int64_t row = r * args.out_stride;
      FetchRow(args, row + kRowsAhead * args.out_stride);
      for (int i = 0; i < args.num_columns; i += V::kWidth) {
        const int lanes = Lanes(args.num_columns - i);
        const typename V::F32 value = V::Mul(Silu<V>(V::Load(sums + i)), V::Load(sums + 16 + i));
        StoreLanes(args, row + i, value, lanes);
      }
    }
  }

 private:
  // Rows are stored about a tile of rows after they are asked for, a page or more apart.
  static constexpr int kRowsAhead = 32;
  static void FetchRow(const StoreArgs& args, int64_t element) {
    const char* line = static_cast<const char*>(args.out) + element * (args.out_dtype == DType::kF32 ? 4 : 2);
    FetchForWriting(line);
    if (args.out_dtype == DType::kF32 && args.num_columns > 16) FetchForWriting(line + 64);
  }
  static void StoreLanes(const StoreArgs& args, int64_t element, typename V::F32 value, int lanes) {
    if (lanes == V::kWidth) {
      if (args.out_dtype == DType::kBf16) {
        V::StoreBf16(static_cast<uint16_t*>(args.out) + element, value);
      } else if (args.out_dtype == DType::kF16) {
        V::StoreF16(static_cast<uint16_t*>(args.out) + element, value);
      } else {
        V::Store(static_cast<float*>(args.out) + element, value);
      }
    } else if (args.out_dtype == DType::kBf16) {
      V::StoreBf16First(static_cast<uint16_t*>(args.out) + element, value, lanes);
    } else if (args.out_dtype == DType::kF16) {
      V::StoreF16First(static_cast<uint16_t*>(args.out) + element, value, lanes);
    } else {
      V::StoreFirst(static_cast<float*>(args.out) + element, value, lanes);
    }
  }
  static int Lanes(int left) { return left < V::kWidth ? left : V::kWidth; }
};

}  // namespace
}  // namespace plumbline
