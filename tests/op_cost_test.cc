// What an op needs at least, counted here product by product and row by row, and the profile that keeps it.
#include "kernels/op_cost.h"

#include "kernels/machine_rates.h"
#include "kernels/profiled_ops.h"
#include "tests/ops_test_util.h"

namespace plumbline {
namespace {

TEST(OpCost, LinearReadsItsWeightOnce) {
  HostTensor x(DType::kBf16, {5, 96}), weight(DType::kU8, {64 * 96 * 2}), out(DType::kF32, {5, 64});
  const OpCost cost = CostOf(LinearArgs{.out = out, .x = x, .weight = weight, .shape = {.n = 64, .k = 96}});
  EXPECT_EQ(cost.bytes, 5 * 96 * 2 + 64 * 96 * 2 + 5 * 64 * 4);
  EXPECT_EQ(cost.flops, 2 * 5 * 64 * 96);
}

TEST(OpCost, AttentionCountsTheKeysThatARowSees) {
  constexpr int kHeads = 6, kKvHeads = 2, kDim = 32;
  const std::vector<StepPart> parts = {{0, 0, 70, 70}, {1, 130, 3, 0}, {2, 64, 10, 10}};
  const StepRows rows(parts, {{0, 1}, {2, 3, 4}, {5, 6}}, {0, 1, 2});
  HostTensor q(DType::kBf16, {83, kHeads, kDim}), out(DType::kBf16, {83, kHeads * kDim});
  HostTensor keys(DType::kBf16, {7, kKvHeads, kBlockTokens, kDim}), values = keys;
  double bytes = 2 * 83.0 * kHeads * kDim * 2, flops = 0;
  for (const StepPart& part : parts) {
    for (int row = part.start; row < part.start + part.num_rows; ++row) {
      for (int key = 0; key <= row; ++key) flops += 2 * (2.0 * kHeads * kDim);  // q k, and weight times value
    }
    bytes += (part.start + part.num_rows) * 2.0 * kKvHeads * kDim * 2;
  }
  const OpCost cost =
      CostOf(AttentionArgs{.out = out, .q = q, .k_cache = keys, .v_cache = values, .sequences = rows.view()});
  EXPECT_DOUBLE_EQ(cost.flops, flops);
  EXPECT_DOUBLE_EQ(cost.bytes, bytes);
}

TEST(OpCost, DeltaRuleOfAWholeChunk) {
  constexpr double kKeyHeads = 2, kHeads = 4, kP = 16, kQ = 24;
  const StepRows rows({{0, 0, 64, 64}}, {}, {0});
  HostTensor out(DType::kBf16, {64, 96}), state(DType::kF32, {1, 4, 16, 24}), conv(DType::kF32, {64, 160});
  HostTensor gates(DType::kF32, {64, 104});
  double flops = 0;
  for (int row = 0; row < 64; ++row) {
    flops += kHeads * 3 * 2 * kP * kQ;  // k S, q S, and the row's part of K^T X
    for (int earlier = 0; earlier <= row; ++earlier) flops += 2 * kKeyHeads * 2 * kP + 2 * kHeads * 2 * kQ;
  }
  const OpCost cost = CostOf(GatedDeltaNetArgs{.out = out, .state = state, .conv = conv, .gates = gates,
                                               .sequences = rows.view(), .num_key_heads = 2});
  EXPECT_DOUBLE_EQ(cost.flops, flops);
  EXPECT_DOUBLE_EQ(cost.bytes, 64 * 96 * 2 + 64 * 160 * 4 + 64 * 104 * 4 + 2 * kHeads * kP * kQ * 4);
}

TEST(ProfiledOps, KeepsCallsByOpAndShape) {
  Backend backend = MakeCpuBackend({.arithmetic = CpuArithmetics().front(), .num_threads = 1});
  OpProfile profile;
  const std::unique_ptr<Ops> ops = MakeProfiledOps(std::move(backend.ops), profile);
  HostTensor partials(DType::kF32, {4, 10}), out(DType::kF32, {10}), longer(DType::kF32, {2, 20}), sum(DType::kF32, {20});
  partials.Fill(1.5f);
  for (int i = 0; i < 3; ++i) ops->TreeSum({.out = out, .partials = partials});
  ops->TreeSum({.out = sum, .partials = longer});
  EXPECT_EQ(out.Get(9), 6.0f);
  ASSERT_EQ(profile.size(), 2u);
  EXPECT_EQ(profile["TreeSum 10"].num_calls, 3);
  EXPECT_EQ(profile["TreeSum 10"].cost.bytes, 3 * (4 * 10 + 10) * 4.0);
  EXPECT_GT(profile["TreeSum 20"].seconds, 0);
}

TEST(MachineRates, ArePlausible) {
  for (const std::string& arithmetic : CpuArithmetics()) {
    const MachineRates rates = MeasureCpuRates({.arithmetic = arithmetic, .num_threads = 1}, DType::kF32);
    EXPECT_GT(rates.bytes_per_second, 5e8) << arithmetic;
    EXPECT_LT(rates.bytes_per_second, 1e12) << arithmetic;
    EXPECT_GT(rates.flops_per_second, 5e8) << arithmetic;
    EXPECT_LT(rates.flops_per_second, 1e12) << arithmetic;  // one core, f32
  }
}

}  // namespace
}  // namespace plumbline
