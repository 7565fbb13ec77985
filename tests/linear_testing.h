// What the tests of linears and of experts share: matrices, packed weights, a float64 evaluation
// with bounds of its f32 counterpart, and the check that a row's bits do not depend on its batch.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/backend.h"
#include "kernels/half.h"
#include "tests/ops_test_util.h"

namespace plumbline {

constexpr double kUnit = 0x1p-24;  // relative error of one f32 rounding

// Half the distance of neighbouring values, relative.
inline double ActUnit(DType dtype) {
  return dtype == DType::kBf16 ? 0x1p-8 : dtype == DType::kF16 ? 0x1p-11 : kUnit;
}

// With the reference, which float64 judges too; CUDA's tests leave it to those of the CPU.
inline std::vector<std::string> AllArithmetics() {
  std::vector<std::string> names = TestedArithmetics();
#ifndef PLUMBLINE_TEST_CUDA
  names.push_back("reference-1");
#endif
  return names;
}

// Where the roles have kernels of their own.
enum class RowRole { kPrompt, kGenerated };
inline std::vector<RowRole> TestedRoles() {
#ifdef PLUMBLINE_TEST_CUDA
  return {RowRole::kPrompt, RowRole::kGenerated};
#else
  return {RowRole::kPrompt};
#endif
}

// A host matrix whose elements are exactly representable in its dtype.
struct Matrix {
  DType dtype;
  int64_t rows, columns;
  std::vector<uint8_t> bytes;
  std::vector<double> values;

  Matrix(DType dtype, int64_t rows, int64_t columns)
      : dtype(dtype),
        rows(rows),
        columns(columns),
        bytes(rows * columns * SizeOf(dtype)),
        values(rows * columns) {}

  void Set(int64_t i, float value) {
    if (dtype == DType::kBf16) {
      Store(i, FromFloat<Bf16>(value));
    } else if (dtype == DType::kF16) {
      Store(i, FromFloat<F16>(value));
    } else {
      Store(i, value);
    }
  }
  ConstTensor view() const { return {bytes.data(), dtype, {rows, columns}}; }
  // The values of bytes that an op has written.
  void ReadValues() {
    for (int64_t i = 0; i < rows * columns; ++i) {
      values[i] = dtype == DType::kBf16  ? ToFloat(reinterpret_cast<const Bf16*>(bytes.data())[i])
                  : dtype == DType::kF16 ? ToFloat(reinterpret_cast<const F16*>(bytes.data())[i])
                                         : reinterpret_cast<const float*>(bytes.data())[i];
    }
  }
  Matrix Rows(int64_t first, int64_t count) const {
    Matrix part(dtype, count, columns);
    const size_t row_bytes = columns * SizeOf(dtype);
    std::memcpy(part.bytes.data(), bytes.data() + first * row_bytes, count * row_bytes);
    std::copy_n(values.begin() + first * columns, count * columns, part.values.begin());
    return part;
  }

 private:
  template <typename T>
  void Store(int64_t i, T value) {
    std::memcpy(bytes.data() + i * sizeof value, &value, sizeof value);
    values[i] = ToFloat(value);
  }
};

inline Matrix RandomMatrix(DType dtype, int64_t rows, int64_t columns, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  Matrix matrix(dtype, rows, columns);
  for (int64_t i = 0; i < rows * columns; ++i) matrix.Set(i, normal(random));
  return matrix;
}

// The columns in reverse: the same dot products, summed in another order.
inline Matrix Reversed(const Matrix& matrix) {
  Matrix reversed(matrix.dtype, matrix.rows, matrix.columns);
  for (int64_t r = 0; r < matrix.rows; ++r) {
    for (int64_t c = 0; c < matrix.columns; ++c) {
      reversed.Set(r * matrix.columns + c,
                   static_cast<float>(matrix.values[(r + 1) * matrix.columns - 1 - c]));
    }
  }
  return reversed;
}

struct PackSource {
  const Matrix& weight;
  int64_t first_row = 0;  // of the weight
  int64_t first_column = 0;
};

inline Buffer Pack(Backend& backend, const LinearShape& shape, const PackSource& source) {
  const int64_t bytes = backend.ops->PackedBytes(shape);
  EXPECT_EQ(bytes % 64, 0);
  Buffer packed = backend.device->Allocate(bytes);
  // In three pieces of odd sizes, as the parts of a merged projection arrive.
  const int64_t cuts[] = {0, shape.n / 3, shape.n / 3 + shape.n / 2, shape.n};
  for (int i = 0; i < 3; ++i) {
    if (cuts[i] == cuts[i + 1]) continue;
    const Matrix piece = source.weight.Rows(source.first_row + cuts[i], cuts[i + 1] - cuts[i]);
    backend.ops->PackLinear({.out = packed.View(DType::kU8, {bytes}),
                             .shape = shape,
                             .source = piece.view(),
                             .first_row = cuts[i],
                             .first_column = source.first_column});
  }
  return packed;
}

struct LinearCase {
  Backend& backend;
  LinearShape shape;
  Buffer packed;
  std::vector<float> bias = {};
  int64_t num_generated = 0;  // of the rows, as many as there are

  std::vector<float> Run(const Matrix& x, Matrix* rounded = nullptr) const {
    const int64_t columns = shape.n - (rounded ? rounded->columns : 0);
    std::vector<float> out(x.rows * columns, NAN);
    backend.ops->Linear(
        {.out = Tensor(out.data(), DType::kF32, {x.rows, columns}),
         .x = x.view(),
         .weight = packed.View(DType::kU8, {backend.ops->PackedBytes(shape)}),
         .shape = shape,
         .bias = bias.empty() ? ConstTensor() : ConstTensor(bias.data(), DType::kF32, {shape.n}),
         .rounded = rounded ? Tensor(rounded->bytes.data(), shape.dtype, {x.rows, rounded->columns}) : Tensor(),
         .num_generated = std::min(num_generated, x.rows)});
    if (rounded) rounded->ReadValues();
    return out;
  }
  Matrix RunGated(const Matrix& x) const {
    Matrix out(shape.dtype, x.rows, shape.n / 2);
    backend.ops->GatedLinear({.out = Tensor(out.bytes.data(), shape.dtype, {x.rows, shape.n / 2}),
                              .x = x.view(),
                              .weight = packed.View(DType::kU8, {backend.ops->PackedBytes(shape)}),
                              .shape = shape,
                              .num_generated = std::min(num_generated, x.rows)});
    out.ReadValues();
    return out;
  }
};

inline LinearCase MakeCase(Backend& backend, const LinearShape& shape, const PackSource& source) {
  return {backend, shape, Pack(backend, shape, source)};
}

struct Exact {
  double value;
  double error;  // of any f32 sum of the products, in any order
};

// Every product and every addition of a sum of k products may be rounded once: (k + 1) roundings of
// at most the sum of magnitudes each, plus the bias.
inline Exact DotProduct(const Matrix& x, int64_t row, const Matrix& weight, int64_t n) {
  double sum = 0, magnitude = 0;
  for (int64_t k = 0; k < weight.columns; ++k) {
    const double product = x.values[row * x.columns + k] * weight.values[n * weight.columns + k];
    sum += product;
    magnitude += std::abs(product);
  }
  return {sum, 1.01 * (weight.columns + 2) * kUnit * magnitude};
}

inline Exact GatedProduct(const Matrix& x, int64_t row, const Matrix& weight, int64_t i) {
  const Exact gate = DotProduct(x, row, weight, i),
              up = DotProduct(x, row, weight, weight.rows / 2 + i);
  const double silu = gate.value / (1 + std::exp(-gate.value));
  const double silu_error =
      1.1 * gate.error + 4 * kUnit * std::abs(silu);  // |silu'| < 1.1; evaluated to 2.5 ulp
  return {silu * up.value,
          silu_error * (std::abs(up.value) + up.error) + std::abs(silu) * up.error};
}

inline double Rounded(const Exact& exact, DType dtype) {  // the error after one rounding to dtype
  const double unit = ActUnit(dtype);
  return exact.error * (1 + unit) + std::abs(exact.value) * unit +
         (dtype == DType::kF16 ? 0x1p-25 : 1e-38);
}

inline bool SameBits(const void* a, const void* b, size_t num_bytes) {
  return std::memcmp(a, b, num_bytes) == 0;
}

inline const int64_t kRowCounts[] = {1, 2, 3, 7, 16, 17, 64, 130};
// The most rows of a batch: the host's CUDA takes its time.
#ifdef PLUMBLINE_TEST_CUDA
inline constexpr int64_t kManyRows = 140;
#else
inline constexpr int64_t kManyRows = 530;
#endif

// Whether run(rows of x) gives every row the bits it has in the largest batch, at several places in
// the batch.
template <typename T>
bool RowsKeepTheirBits(const Matrix& x, const std::function<std::vector<T>(const Matrix&)>& run) {
  const std::vector<T> all = run(x);
  const size_t columns = all.size() / x.rows;
  for (int64_t count : kRowCounts) {
    for (int64_t first : {int64_t{0}, (x.rows - count) / 2, x.rows - count}) {
      const std::vector<T> some = run(x.Rows(first, count));
      if (!SameBits(some.data(), all.data() + first * columns, some.size() * sizeof(T)))
        return false;
    }
  }
  return true;
}

using Param = std::tuple<std::string, DType, RowRole>;
inline std::string NameOfParam(const testing::TestParamInfo<Param>& info) {
  std::string name = std::get<0>(info.param) + "_" + NameOf(std::get<1>(info.param));
  if (std::get<2>(info.param) == RowRole::kGenerated) name += "_generated";
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}
inline auto AllParams() {
  return testing::Combine(testing::ValuesIn(AllArithmetics()), testing::ValuesIn(kActTypes),
                          testing::ValuesIn(TestedRoles()));
}

class ArithmeticTest : public testing::TestWithParam<Param> {
 protected:
  const std::string& arithmetic() const { return std::get<0>(GetParam()); }
  DType dtype() const { return std::get<1>(GetParam()); }
  RowRole role() const { return std::get<2>(GetParam()); }
  // Its rows have the test's role.
  LinearCase MakeLinear(const LinearShape& shape, const PackSource& source) {
    LinearCase linear = MakeCase(backend_, shape, source);
    if (role() == RowRole::kGenerated) linear.num_generated = std::numeric_limits<int64_t>::max();
    return linear;
  }
  Backend backend_ = BackendOf(std::get<0>(GetParam()));
};

}  // namespace plumbline
