// Linear and GatedLinear of every arithmetic: right (against a float64 evaluation, which also
// judges the reference backend), and with bits that depend on nothing but the row itself.
#include <gmock/gmock.h>

#include "tests/linear_testing.h"

namespace plumbline {
namespace {

class LinearParity : public ArithmeticTest {};
INSTANTIATE_TEST_SUITE_P(All, LinearParity, AllParams(), NameOfParam);

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
    LinearCase linear = MakeLinear(shape, {weight});
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

TEST_P(LinearParity, RoundedColumnsAreTheOthersRounded) {
  const LinearShape shape = {.n = 203, .k = 96, .dtype = dtype()};
  LinearCase linear = MakeLinear(shape, {RandomMatrix(dtype(), shape.n, shape.k, 1)});
  for (int64_t n = 0; n < shape.n; ++n) linear.bias.push_back(0.25f * n);
  for (int64_t rows : kRowCounts) {
    const Matrix x = RandomMatrix(dtype(), rows, shape.k, 2);
    const std::vector<float> whole = linear.Run(x);
    for (int64_t num_rounded : {1, 32, 45, 160, 192, 202}) {
      Matrix rounded(dtype(), rows, num_rounded);
      const std::vector<float> others = linear.Run(x, &rounded);
      for (int64_t i = 0; i < rows * shape.n; ++i) {
        const int64_t row = i / shape.n, column = i % shape.n;
        if (column < num_rounded) {
          Matrix expected(dtype(), 1, 1);
          expected.Set(0, whole[i]);
          ASSERT_EQ(rounded.values[row * num_rounded + column], expected.values[0]) << num_rounded << " at " << i;
        } else {
          ASSERT_EQ(others[row * (shape.n - num_rounded) + column - num_rounded], whole[i]) << num_rounded << " at " << i;
        }
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
    const LinearCase linear = MakeLinear(shape, {weight});
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
    EXPECT_EQ(MakeLinear(shape, {original}).Run(x),
              MakeLinear(shape, {converted}).Run(x));
  }
}

TEST_P(LinearParity, RowsKeepTheirBitsInAnyBatch) {
  const Matrix x = RandomMatrix(dtype(), 130, 288, 7);
  const LinearShape shape{.n = 70, .k = 288, .num_leaves = 8, .dtype = dtype()};
  const Matrix weight = RandomMatrix(dtype(), shape.n, shape.k, 8);
  const LinearCase linear = MakeLinear(shape, {weight});
  EXPECT_TRUE(RowsKeepTheirBits<float>(x, [&](const Matrix& rows) { return linear.Run(rows); }));

  LinearShape gated_shape{.n = 70, .k = 288, .dtype = dtype(), .gated = true};
  const LinearCase gated = MakeLinear(gated_shape, {weight});
  EXPECT_TRUE(RowsKeepTheirBits<uint8_t>(
      x, [&](const Matrix& rows) { return gated.RunGated(rows).bytes; }));

  // Control: a sum whose order depends on the number of rows is caught.
  LinearShape one_leaf = shape;
  one_leaf.num_leaves = 1;
  const LinearCase other = MakeLinear(one_leaf, {weight});
  EXPECT_FALSE(RowsKeepTheirBits<float>(
      x, [&](const Matrix& rows) { return rows.rows > 16 ? linear.Run(rows) : other.Run(rows); }));
}

// Long enough that sums continue over several chunks of k, and rows over several blocks of rows.
TEST_P(LinearParity, LongSumsKeepTheirBitsInAnyBatch) {
  const LinearShape shape{.n = 40, .k = 1500, .dtype = dtype()};
  const Matrix weight = RandomMatrix(dtype(), shape.n, shape.k, 9);
  const Matrix x = RandomMatrix(dtype(), kManyRows, shape.k, 10);
  const LinearCase linear = MakeLinear(shape, {weight});
  EXPECT_TRUE(RowsKeepTheirBits<float>(x, [&](const Matrix& rows) { return linear.Run(rows); }));
}

// Large enough that the output is written past the caches, but for its last, narrow block.
TEST_P(LinearParity, LargeOutputsKeepTheirBitsInAnyBatch) {
  const LinearShape shape{.n = 2064, .k = 40, .dtype = dtype()};
  const Matrix weight = RandomMatrix(dtype(), shape.n, shape.k, 21);
  const Matrix x = RandomMatrix(dtype(), kManyRows, shape.k, 22);
  const LinearCase linear = MakeLinear(shape, {weight});
  EXPECT_TRUE(RowsKeepTheirBits<float>(x, [&](const Matrix& rows) { return linear.Run(rows); }));
}

TEST_P(LinearParity, ColumnsKeepTheirBitsOnAnyRank) {
  const LinearShape shape{.n = 150, .k = 200, .num_leaves = 2, .dtype = dtype()};
  const Matrix weight = RandomMatrix(dtype(), shape.n, shape.k, 11);
  const Matrix x = RandomMatrix(dtype(), 17, shape.k, 12);
  const std::vector<float> whole = MakeLinear(shape, {weight}).Run(x);
  for (int64_t cut : {1, 37, 64, 75}) {
    for (const auto& [first, last] : {std::pair<int64_t, int64_t>{0, cut}, {cut, shape.n}}) {
      LinearShape part = shape;
      part.n = last - first;
      const std::vector<float> out =
          MakeLinear(part, {.weight = weight, .first_row = first}).Run(x);
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
  const std::vector<float> whole = MakeLinear(whole_shape, {weight}).Run(x);

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
          MakeLinear(shape, {.weight = weight, .first_column = rank * shape.k})
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
  if (arithmetic() == "reference-1" || arithmetic() == "cuda") GTEST_SKIP() << "no threads to choose";
  const LinearShape shape{.n = 200, .k = 320, .num_leaves = 8, .dtype = dtype()};
  const Matrix weight = RandomMatrix(dtype(), shape.n, shape.k, 15);
  for (int64_t rows : {1, 70}) {
    const Matrix x = RandomMatrix(dtype(), rows, shape.k, 16);
    const std::vector<float> expected = MakeLinear(shape, {weight}).Run(x);
    for (int threads : {1, 3, 5}) {
      Backend backend = BackendOf(arithmetic(), threads);
      const LinearCase linear = MakeCase(backend, shape, {weight});
      for (int repeat = 0; repeat < 3; ++repeat) EXPECT_EQ(linear.Run(x), expected);
    }
  }
}

}  // namespace
}  // namespace plumbline
