// MoeRoute of every arithmetic and of the reference, against float64.
#include <gmock/gmock.h>

#include <numeric>

#include "tests/ops_test_util.h"

namespace plumbline {
namespace {

std::vector<std::string> Arithmetics() {
  std::vector<std::string> names = TestedArithmetics();
  names.push_back("reference-1");
  return names;
}

struct Routes {
  std::vector<int32_t> experts;
  std::vector<float> weights;
};

class MoeRouteParity : public testing::TestWithParam<std::string> {
 protected:
  Routes Route(const std::vector<float>& logits, int64_t num_experts, int64_t num_chosen, bool renormalize) {
    const int64_t rows = static_cast<int64_t>(logits.size()) / num_experts;
    Routes routes = {std::vector<int32_t>(rows * num_chosen, -1), std::vector<float>(rows * num_chosen, NAN)};
    backend_.ops->MoeRoute({.experts = Tensor(routes.experts.data(), DType::kI32, {rows, num_chosen}),
                            .weights = Tensor(routes.weights.data(), DType::kF32, {rows, num_chosen}),
                            .logits = ConstTensor(logits.data(), DType::kF32, {rows, num_experts}),
                            .renormalize = renormalize});
    return routes;
  }
  Backend backend_ = BackendOf(GetParam());
};
INSTANTIATE_TEST_SUITE_P(All, MoeRouteParity, testing::ValuesIn(Arithmetics()));

TEST_P(MoeRouteParity, TakesTheLargestInAscendingId) {
  struct Case {
    int64_t num_experts, num_chosen;
  };
  for (const auto& [num_experts, num_chosen] : {Case{1, 1}, {6, 3}, {33, 33}, {128, 8}, {257, 10}, {512, 10}}) {
    const int64_t rows = 50;
    const std::vector<float> logits = Random(20).Tensor(DType::kF32, {rows, num_experts}).Floats();
    for (bool renormalize : {false, true}) {
      const Routes routes = Route(logits, num_experts, num_chosen, renormalize);
      for (int64_t t = 0; t < rows; ++t) {
        const float* row = &logits[t * num_experts];
        std::vector<int32_t> order(num_experts);
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return row[a] > row[b]; });
        std::sort(order.begin(), order.begin() + num_chosen);
        double sum = 0;
        for (int64_t i = 0; i < (renormalize ? num_chosen : num_experts); ++i) sum += std::exp(double{row[order[i]]});
        // The sum of E terms in f32, and of those chosen; exp, two divisions, the differences under it.
        const double tolerance = static_cast<double>(num_experts + num_chosen + 32) * 0x1p-24;
        for (int64_t i = 0; i < num_chosen; ++i) {
          EXPECT_EQ(routes.experts[t * num_chosen + i], order[i]) << num_experts << " experts, token " << t;
          const double expected = std::exp(double{row[order[i]]}) / sum;
          EXPECT_NEAR(routes.weights[t * num_chosen + i], expected, tolerance * expected);
        }
      }
    }
  }
}

TEST_P(MoeRouteParity, GivesTiesToTheLowestId) {
  EXPECT_THAT(Route({1, 3, 2, 3, 2, 2, 3, 2}, 8, 5, false).experts, testing::ElementsAre(1, 2, 3, 4, 6));
  std::vector<float> wide(100, 0.0f);
  wide[99] = wide[40] = 1;
  EXPECT_THAT(Route(wide, 100, 5, false).experts, testing::ElementsAre(0, 1, 2, 40, 99));
  // Both underflow to p = 0.
  EXPECT_THAT(Route({0, -300, -200, 0}, 4, 3, false).experts, testing::ElementsAre(0, 1, 3));
}

TEST_P(MoeRouteParity, TokensKeepTheirBitsInAnyBatch) {
  constexpr int64_t kExperts = 70, kChosen = 6, kRows = 130;
  const std::vector<float> logits = Random(22).Tensor(DType::kF32, {kRows, kExperts}, 2).Floats();
  const Routes all = Route(logits, kExperts, kChosen, true);
  for (int64_t count : {1, 2, 3, 7, 16, 17, 64, 130}) {
    for (int64_t first : {int64_t{0}, (kRows - count) / 2, kRows - count}) {
      const Routes some =
          Route({logits.begin() + first * kExperts, logits.begin() + (first + count) * kExperts}, kExperts, kChosen, true);
      for (int64_t i = 0; i < count * kChosen; ++i) {
        ASSERT_EQ(some.experts[i], all.experts[first * kChosen + i]) << count << " rows from " << first;
        ASSERT_EQ(some.weights[i], all.weights[first * kChosen + i]) << count << " rows from " << first;
      }
    }
  }
}

}  // namespace
}  // namespace plumbline
