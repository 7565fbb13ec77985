// Linear, GatedLinear, MoeRoute and MoeMlp of every CPU arithmetic: right (against a float64
// evaluation written here, which also judges the reference backend), and with bits that depend on
// nothing but the row itself.
#include <gmock/gmock.h>
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

namespace plumbline {
namespace {

constexpr double kUnit = 0x1p-24;  // relative error of one f32 rounding

// Half the distance of neighbouring values, relative.
double ActUnit(DType dtype) {
  return dtype == DType::kBf16 ? 0x1p-8 : dtype == DType::kF16 ? 0x1p-11 : kUnit;
}

Backend MakeBackend(const std::string& arithmetic, int num_threads = 2) {
  if (arithmetic == "reference-1") return MakeReferenceBackend();
  return MakeCpuBackend({.arithmetic = arithmetic, .num_threads = num_threads});
}

std::vector<std::string> AllArithmetics() {
  std::vector<std::string> names = CpuArithmetics();
  names.push_back("reference-1");
  return names;
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

Matrix RandomMatrix(DType dtype, int64_t rows, int64_t columns, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  Matrix matrix(dtype, rows, columns);
  for (int64_t i = 0; i < rows * columns; ++i) matrix.Set(i, normal(random));
  return matrix;
}

// The columns in reverse: the same dot products, summed in another order.
Matrix Reversed(const Matrix& matrix) {
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

Buffer Pack(Backend& backend, const LinearShape& shape, const PackSource& source) {
  const int64_t bytes = backend.ops->PackedBytes(shape);
  EXPECT_EQ(bytes % 64, 0);
  Buffer packed = backend.device->Allocate(bytes);
  // In three pieces of odd sizes, as the parts of a merged projection arrive.
  const int64_t cuts[] = {0, shape.n / 3, shape.n / 3 + shape.n / 2, shape.n};
  for (int i = 0; i < 3; ++i) {
    const Matrix piece = source.weight.Rows(source.first_row + cuts[i], cuts[i + 1] - cuts[i]);
    if (piece.rows == 0) continue;
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

  std::vector<float> Run(const Matrix& x) const {
    std::vector<float> out(x.rows * shape.n, NAN);
    backend.ops->Linear(
        {.out = Tensor(out.data(), DType::kF32, {x.rows, shape.n}),
         .x = x.view(),
         .weight = packed.View(DType::kU8, {backend.ops->PackedBytes(shape)}),
         .shape = shape,
         .bias = bias.empty() ? ConstTensor() : ConstTensor(bias.data(), DType::kF32, {shape.n})});
    return out;
  }
  Matrix RunGated(const Matrix& x) const {
    Matrix out(shape.dtype, x.rows, shape.n / 2);
    backend.ops->GatedLinear({.out = Tensor(out.bytes.data(), shape.dtype, {x.rows, shape.n / 2}),
                              .x = x.view(),
                              .weight = packed.View(DType::kU8, {backend.ops->PackedBytes(shape)}),
                              .shape = shape});
    for (int64_t i = 0; i < out.rows * out.columns; ++i) {
      out.values[i] =
          shape.dtype == DType::kBf16  ? ToFloat(reinterpret_cast<const Bf16*>(out.bytes.data())[i])
          : shape.dtype == DType::kF16 ? ToFloat(reinterpret_cast<const F16*>(out.bytes.data())[i])
                                       : reinterpret_cast<const float*>(out.bytes.data())[i];
    }
    return out;
  }
};

LinearCase MakeCase(Backend& backend, const LinearShape& shape, const PackSource& source) {
  return {backend, shape, Pack(backend, shape, source)};
}

struct Exact {
  double value;
  double error;  // of any f32 sum of the products, in any order
};

// Every product and every addition of a sum of k products may be rounded once: (k + 1) roundings of
// at most the sum of magnitudes each, plus the bias.
Exact DotProduct(const Matrix& x, int64_t row, const Matrix& weight, int64_t n) {
  double sum = 0, magnitude = 0;
  for (int64_t k = 0; k < weight.columns; ++k) {
    const double product = x.values[row * x.columns + k] * weight.values[n * weight.columns + k];
    sum += product;
    magnitude += std::abs(product);
  }
  return {sum, 1.01 * (weight.columns + 2) * kUnit * magnitude};
}

Exact GatedProduct(const Matrix& x, int64_t row, const Matrix& weight, int64_t i) {
  const Exact gate = DotProduct(x, row, weight, i),
              up = DotProduct(x, row, weight, weight.rows / 2 + i);
  const double silu = gate.value / (1 + std::exp(-gate.value));
  const double silu_error =
      1.1 * gate.error + 4 * kUnit * std::abs(silu);  // |silu'| < 1.1; evaluated to 2.5 ulp
  return {silu * up.value,
          silu_error * (std::abs(up.value) + up.error) + std::abs(silu) * up.error};
}

double Rounded(const Exact& exact, DType dtype) {  // the error after one rounding to dtype
  const double unit = ActUnit(dtype);
  return exact.error * (1 + unit) + std::abs(exact.value) * unit +
         (dtype == DType::kF16 ? 0x1p-25 : 1e-38);
}

bool SameBits(const void* a, const void* b, size_t num_bytes) {
  return std::memcmp(a, b, num_bytes) == 0;
}

const int64_t kRowCounts[] = {1, 2, 3, 7, 16, 17, 64, 130};

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

// ---- one shape on one arithmetic
// --------------------------------------------------------------------------------

using Param = std::tuple<std::string, DType>;
std::string NameOfParam(const testing::TestParamInfo<Param>& info) {
  std::string name = std::get<0>(info.param) + "_" + NameOf(std::get<1>(info.param));
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}
const auto kActTypes = testing::Values(DType::kBf16, DType::kF16, DType::kF32);

class LinearParity : public testing::TestWithParam<Param> {
 protected:
  DType dtype() const { return std::get<1>(GetParam()); }
  Backend backend_ = MakeBackend(std::get<0>(GetParam()));
};
INSTANTIATE_TEST_SUITE_P(All, LinearParity,
                         testing::Combine(testing::ValuesIn(AllArithmetics()), kActTypes),
                         NameOfParam);

// k: a multiple of 32 x leaves or not, leaves that end inside a tile, a leaf shorter than the
// others, leaves left empty.
const LinearShape kShapes[] = {
    {.n = 64, .k = 96},
    {.n = 37, .k = 33},
    {.n = 1, .k = 1},
    {.n = 50, .k = 1100},
    {.n = 33, .k = 128, .num_leaves = 2},
    {.n = 41, .k = 250, .num_leaves = 4},
    {.n = 300, .k = 512, .num_leaves = 8},
    {.n = 35, .k = 288, .num_leaves = 8},
    {.n = 20, .k = 10, .num_leaves = 8},
};

TEST_P(LinearParity, LinearEqualsFloat64WithinRounding) {
  for (LinearShape shape : kShapes) {
    shape.dtype = dtype();
    const Matrix weight = RandomMatrix(dtype(), shape.n, shape.k, 1);
    LinearCase linear = MakeCase(backend_, shape, {weight});
    linear.bias.resize(shape.n);
    for (int64_t n = 0; n < shape.n; ++n) linear.bias[n] = 0.25f * n;
    for (int64_t rows : kRowCounts) {
      const Matrix x = RandomMatrix(dtype(), rows, shape.k, 2);
      const std::vector<float> out = linear.Run(x);
      for (int64_t i = 0; i < rows * shape.n; ++i) {
        const Exact exact = DotProduct(x, i / shape.n, weight, i % shape.n);
        const double expected = exact.value + linear.bias[i % shape.n];
        ASSERT_NEAR(out[i], expected, exact.error + std::abs(expected) * 2 * kUnit)
            << "n " << shape.n << " k " << shape.k << " leaves " << shape.num_leaves << " rows "
            << rows << " at " << i;
      }
    }
  }
}

TEST_P(LinearParity, GatedLinearEqualsFloat64WithinRounding) {
  for (LinearShape shape :
       {LinearShape{.n = 64, .k = 96, .gated = true}, LinearShape{.n = 74, .k = 100, .gated = true},
        LinearShape{.n = 2, .k = 40, .gated = true}}) {
    shape.dtype = dtype();
    Matrix weight = RandomMatrix(dtype(), shape.n, shape.k, 3);
    const LinearCase linear = MakeCase(backend_, shape, {weight});
    for (int64_t rows : kRowCounts) {
      const Matrix x = RandomMatrix(dtype(), rows, shape.k, 4);
      const Matrix out = linear.RunGated(x);
      for (int64_t i = 0; i < rows * out.columns; ++i) {
        const Exact exact = GatedProduct(x, i / out.columns, weight, i % out.columns);
        ASSERT_NEAR(out.values[i], exact.value, Rounded(exact, dtype()))
            << "n " << shape.n << " rows " << rows << " at " << i;
      }
    }
  }
}

TEST_P(LinearParity, SourceOfAnotherTypeIsConvertedOnce) {
  const LinearShape shape{.n = 48, .k = 64, .dtype = dtype()};
  for (DType source : {DType::kBf16, DType::kF16, DType::kF32}) {
    const Matrix original = RandomMatrix(source, shape.n, shape.k, 5);
    Matrix converted(dtype(), shape.n, shape.k);
    for (int64_t i = 0; i < shape.n * shape.k; ++i)
      converted.Set(i, static_cast<float>(original.values[i]));
    const Matrix x = RandomMatrix(dtype(), 3, shape.k, 6);
    EXPECT_EQ(MakeCase(backend_, shape, {original}).Run(x),
              MakeCase(backend_, shape, {converted}).Run(x));
  }
}

TEST_P(LinearParity, RowsKeepTheirBitsInAnyBatch) {
  const Matrix x = RandomMatrix(dtype(), 130, 288, 7);
  const LinearShape shape{.n = 70, .k = 288, .num_leaves = 8, .dtype = dtype()};
  const Matrix weight = RandomMatrix(dtype(), shape.n, shape.k, 8);
  const LinearCase linear = MakeCase(backend_, shape, {weight});
  EXPECT_TRUE(RowsKeepTheirBits<float>(x, [&](const Matrix& rows) { return linear.Run(rows); }));

  LinearShape gated_shape{.n = 70, .k = 288, .dtype = dtype(), .gated = true};
  const LinearCase gated = MakeCase(backend_, gated_shape, {weight});
  EXPECT_TRUE(RowsKeepTheirBits<uint8_t>(
      x, [&](const Matrix& rows) { return gated.RunGated(rows).bytes; }));

  // Control: a sum whose order depends on the number of rows is caught.
  LinearShape one_leaf = shape;
  one_leaf.num_leaves = 1;
  const LinearCase other = MakeCase(backend_, one_leaf, {weight});
  EXPECT_FALSE(RowsKeepTheirBits<float>(
      x, [&](const Matrix& rows) { return rows.rows > 16 ? linear.Run(rows) : other.Run(rows); }));
}

// Long enough that the sum is continued over several chunks of k.
TEST_P(LinearParity, LongSumsKeepTheirBitsInAnyBatch) {
  const LinearShape shape{.n = 40, .k = 1500, .dtype = dtype()};
  const Matrix weight = RandomMatrix(dtype(), shape.n, shape.k, 9);
  const Matrix x = RandomMatrix(dtype(), 130, shape.k, 10);
  const LinearCase linear = MakeCase(backend_, shape, {weight});
  EXPECT_TRUE(RowsKeepTheirBits<float>(x, [&](const Matrix& rows) { return linear.Run(rows); }));
}

TEST_P(LinearParity, ColumnsKeepTheirBitsOnAnyRank) {
  const LinearShape shape{.n = 150, .k = 200, .num_leaves = 2, .dtype = dtype()};
  const Matrix weight = RandomMatrix(dtype(), shape.n, shape.k, 11);
  const Matrix x = RandomMatrix(dtype(), 17, shape.k, 12);
  const std::vector<float> whole = MakeCase(backend_, shape, {weight}).Run(x);
  for (int64_t cut : {1, 37, 64, 75}) {
    for (const auto& [first, last] : {std::pair<int64_t, int64_t>{0, cut}, {cut, shape.n}}) {
      LinearShape part = shape;
      part.n = last - first;
      const std::vector<float> out =
          MakeCase(backend_, part, {.weight = weight, .first_row = first}).Run(x);
      for (int64_t r = 0; r < x.rows; ++r) {
        ASSERT_TRUE(
            SameBits(&out[r * part.n], &whole[r * shape.n + first], part.n * sizeof(float)));
      }
    }
  }
}

TEST_P(LinearParity, LeavesKeepTheirBitsOnAnyRank) {
  const LinearShape whole_shape{.n = 45, .k = 8 * 72, .num_leaves = 8, .dtype = dtype()};
  const Matrix weight = RandomMatrix(dtype(), whole_shape.n, whole_shape.k, 13);
  const Matrix x = RandomMatrix(dtype(), 33, whole_shape.k, 14);
  const std::vector<float> whole = MakeCase(backend_, whole_shape, {weight}).Run(x);

  // The sum of `ranks` ranks' subtrees, each rank with its own columns of x and W.
  const auto on_ranks = [&](int ranks, const Matrix& weight, const Matrix& x) {
    LinearShape shape = whole_shape;
    shape.k /= ranks;
    shape.num_leaves /= ranks;
    std::vector<std::vector<float>> partials;
    for (int rank = 0; rank < ranks; ++rank) {
      Matrix x_part(x.dtype, x.rows, shape.k);
      for (int64_t i = 0; i < x.rows * shape.k; ++i) {
        x_part.Set(i, static_cast<float>(
                          x.values[i / shape.k * x.columns + rank * shape.k + i % shape.k]));
      }
      partials.push_back(
          MakeCase(backend_, shape, {.weight = weight, .first_column = rank * shape.k})
              .Run(x_part));
    }
    for (int step = 1; step < ranks; step *= 2) {
      for (int rank = 0; rank < ranks; rank += 2 * step) {
        for (size_t i = 0; i < whole.size(); ++i) partials[rank][i] += partials[rank + step][i];
      }
    }
    return partials[0];
  };
  for (int ranks : {2, 4, 8}) EXPECT_EQ(on_ranks(ranks, weight, x), whole) << ranks << " ranks";
  // Control: the same products in reverse order have other bits.
  EXPECT_NE(on_ranks(2, Reversed(weight), Reversed(x)), whole);
}

TEST_P(LinearParity, ThreadsDoNotChangeBits) {
  if (std::get<0>(GetParam()) == "reference-1") GTEST_SKIP() << "one thread only";
  const LinearShape shape{.n = 200, .k = 320, .num_leaves = 8, .dtype = dtype()};
  const Matrix weight = RandomMatrix(dtype(), shape.n, shape.k, 15);
  for (int64_t rows : {1, 70}) {
    const Matrix x = RandomMatrix(dtype(), rows, shape.k, 16);
    const std::vector<float> expected = MakeCase(backend_, shape, {weight}).Run(x);
    for (int threads : {1, 3, 5}) {
      Backend backend = MakeBackend(std::get<0>(GetParam()), threads);
      const LinearCase linear = MakeCase(backend, shape, {weight});
      for (int repeat = 0; repeat < 3; ++repeat) EXPECT_EQ(linear.Run(x), expected);
    }
  }
}

// ---- mixture of experts
// -------------------------------------------------------------------------------------------

struct MoeCase {
  static constexpr int64_t kHidden = 72, kInner = 80, kExperts = 6, kTopK = 3;

  MoeCase(Backend& backend, DType dtype)
      : backend(backend),
        gate_up_shape{.n = 2 * kInner, .k = kHidden, .dtype = dtype, .gated = true},
        down_shape{.n = kHidden, .k = kInner, .num_leaves = 8, .dtype = dtype} {
    const int64_t gate_up_bytes = backend.ops->PackedBytes(gate_up_shape);
    const int64_t down_bytes = backend.ops->PackedBytes(down_shape);
    gate_up = backend.device->Allocate(kExperts * gate_up_bytes);
    down = backend.device->Allocate(kExperts * down_bytes);
    for (int64_t e = 0; e < kExperts; ++e) {
      gate_up_weights.push_back(RandomMatrix(dtype, 2 * kInner, kHidden, 100 + e));
      down_weights.push_back(RandomMatrix(dtype, kHidden, kInner, 200 + e));
      backend.ops->PackLinear(
          {.out = Tensor(static_cast<uint8_t*>(gate_up.data()) + e * gate_up_bytes, DType::kU8,
                         {gate_up_bytes}),
           .shape = gate_up_shape,
           .source = gate_up_weights.back().view()});
      backend.ops->PackLinear({.out = Tensor(static_cast<uint8_t*>(down.data()) + e * down_bytes,
                                             DType::kU8, {down_bytes}),
                               .shape = down_shape,
                               .source = down_weights.back().view()});
    }
  }

  // The experts of a token depend on the token alone: its first elements serve as logits.
  void Route(const Matrix& x, bool renormalize) {
    std::vector<float> logits;
    for (int64_t i = 0; i < x.rows * kExperts; ++i) {
      logits.push_back(static_cast<float>(x.values[i / kExperts * kHidden + i % kExperts]));
    }
    experts.resize(x.rows * kTopK);
    weights.resize(x.rows * kTopK);
    backend.ops->MoeRoute({.experts = Tensor(experts.data(), DType::kI32, {x.rows, kTopK}),
                           .weights = Tensor(weights.data(), DType::kF32, {x.rows, kTopK}),
                           .logits = ConstTensor(logits.data(), DType::kF32, {x.rows, kExperts}),
                           .renormalize = renormalize});
  }

  std::vector<float> Run(const Matrix& x) {
    Route(x, true);
    std::vector<float> out(x.rows * kHidden, NAN);
    backend.ops->MoeMlp(
        {.out = Tensor(out.data(), DType::kF32, {x.rows, kHidden}),
         .x = x.view(),
         .experts = ConstTensor(experts.data(), DType::kI32, {x.rows, kTopK}),
         .weights = ConstTensor(weights.data(), DType::kF32, {x.rows, kTopK}),
         .gate_up = gate_up.View(DType::kU8, {kExperts, backend.ops->PackedBytes(gate_up_shape)}),
         .down = down.View(DType::kU8, {kExperts, backend.ops->PackedBytes(down_shape)}),
         .gate_up_shape = gate_up_shape,
         .down_shape = down_shape});
    return out;
  }

  Backend& backend;
  LinearShape gate_up_shape, down_shape;
  Buffer gate_up, down;
  std::vector<Matrix> gate_up_weights, down_weights;
  std::vector<int32_t> experts;
  std::vector<float> weights;
};

class MoeParity : public LinearParity {};
INSTANTIATE_TEST_SUITE_P(All, MoeParity,
                         testing::Combine(testing::ValuesIn(AllArithmetics()), kActTypes),
                         NameOfParam);

TEST_P(MoeParity, RouteTakesTheLargestInAscendingId) {
  MoeCase moe(backend_, dtype());
  const Matrix x = RandomMatrix(dtype(), 50, MoeCase::kHidden, 20);
  for (bool renormalize : {false, true}) {
    moe.Route(x, renormalize);
    for (int64_t t = 0; t < x.rows; ++t) {
      const double* logits = &x.values[t * MoeCase::kHidden];
      std::vector<int32_t> order = {0, 1, 2, 3, 4, 5};
      std::stable_sort(order.begin(), order.end(),
                       [&](int a, int b) { return logits[a] > logits[b]; });
      std::sort(order.begin(), order.begin() + MoeCase::kTopK);
      double sum = 0;
      for (int i = 0; i < (renormalize ? MoeCase::kTopK : MoeCase::kExperts); ++i)
        sum += std::exp(logits[order[i]]);
      for (int i = 0; i < MoeCase::kTopK; ++i) {
        EXPECT_EQ(moe.experts[t * MoeCase::kTopK + i], order[i]);
        const double expected = std::exp(logits[order[i]]) / sum;
        EXPECT_NEAR(moe.weights[t * MoeCase::kTopK + i], expected, 32 * kUnit * expected);
      }
    }
  }
}

TEST_P(MoeParity, RouteGivesTiesToTheLowestId) {
  const std::vector<float> logits = {1, 3, 2, 3, 2, 2, 3, 2};
  std::vector<int32_t> experts(5);
  std::vector<float> weights(5);
  backend_.ops->MoeRoute({.experts = Tensor(experts.data(), DType::kI32, {1, 5}),
                          .weights = Tensor(weights.data(), DType::kF32, {1, 5}),
                          .logits = ConstTensor(logits.data(), DType::kF32, {1, 8})});
  EXPECT_THAT(experts, testing::ElementsAre(1, 2, 3, 4, 6));
}

TEST_P(MoeParity, MlpEqualsFloat64WithinRounding) {
  MoeCase moe(backend_, dtype());
  for (int64_t rows : {1, 5, 64}) {
    const Matrix x = RandomMatrix(dtype(), rows, MoeCase::kHidden, 21);
    const std::vector<float> out = moe.Run(x);
    for (int64_t t = 0; t < rows; ++t) {
      std::vector<double> expected(MoeCase::kHidden), error(MoeCase::kHidden);
      for (int64_t i = 0; i < MoeCase::kTopK; ++i) {
        const int32_t e = moe.experts[t * MoeCase::kTopK + i];
        const double weight = moe.weights[t * MoeCase::kTopK + i];
        std::vector<Exact> inner;
        for (int64_t j = 0; j < MoeCase::kInner; ++j)
          inner.push_back(GatedProduct(x, t, moe.gate_up_weights[e], j));
        for (int64_t n = 0; n < MoeCase::kHidden; ++n) {
          double sum = 0, magnitude = 0, inner_error = 0;
          for (int64_t j = 0; j < MoeCase::kInner; ++j) {
            const double w = moe.down_weights[e].values[n * MoeCase::kInner + j];
            sum += inner[j].value * w;
            magnitude += std::abs(inner[j].value * w);
            inner_error += std::abs(w) * Rounded(inner[j], dtype());
          }
          expected[n] += weight * sum;
          error[n] += weight * (inner_error +
                                1.01 * (MoeCase::kInner + 8) * kUnit * (magnitude + inner_error));
        }
      }
      for (int64_t n = 0; n < MoeCase::kHidden; ++n) {
        ASSERT_NEAR(out[t * MoeCase::kHidden + n], expected[n], error[n])
            << "rows " << rows << " token " << t;
      }
    }
  }
}

TEST_P(MoeParity, TokensKeepTheirBitsInAnyBatch) {
  MoeCase moe(backend_, dtype());
  const Matrix x = RandomMatrix(dtype(), 130, MoeCase::kHidden, 22);
  EXPECT_TRUE(RowsKeepTheirBits<float>(x, [&](const Matrix& rows) { return moe.Run(rows); }));
}

}  // namespace
}  // namespace plumbline
