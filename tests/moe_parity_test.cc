// MoeMlp of every arithmetic and of the reference, against float64.
#include "tests/linear_testing.h"

namespace plumbline {
namespace {

struct MoeCase {
  static constexpr int64_t kHidden = 72, kInner = 80, kExperts = 6, kTopK = 3;

  MoeCase(Backend& backend, DType dtype, RowRole role = RowRole::kPrompt)
      : backend(backend),
        role(role),
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
  void Route(const Matrix& x) {
    std::vector<float> logits;
    for (int64_t i = 0; i < x.rows * kExperts; ++i) {
      logits.push_back(static_cast<float>(x.values[i / kExperts * kHidden + i % kExperts]));
    }
    experts.resize(x.rows * kTopK);
    weights.resize(x.rows * kTopK);
    MakeReferenceBackend().ops->MoeRoute({.experts = Tensor(experts.data(), DType::kI32, {x.rows, kTopK}),
                           .weights = Tensor(weights.data(), DType::kF32, {x.rows, kTopK}),
                           .logits = ConstTensor(logits.data(), DType::kF32, {x.rows, kExperts}),
                           .renormalize = true});
  }

  std::vector<float> Run(const Matrix& x) {
    Route(x);
    std::vector<float> out(x.rows * kHidden, NAN);
    backend.ops->MoeMlp(
        {.out = Tensor(out.data(), DType::kF32, {x.rows, kHidden}),
         .x = x.view(),
         .experts = ConstTensor(experts.data(), DType::kI32, {x.rows, kTopK}),
         .weights = ConstTensor(weights.data(), DType::kF32, {x.rows, kTopK}),
         .gate_up = gate_up.View(DType::kU8, {kExperts, backend.ops->PackedBytes(gate_up_shape)}),
         .down = down.View(DType::kU8, {kExperts, backend.ops->PackedBytes(down_shape)}),
         .gate_up_shape = gate_up_shape,
         .down_shape = down_shape,
         .num_generated = role == RowRole::kGenerated ? x.rows : 0});
    return out;
  }

  Backend& backend;
  RowRole role;
  LinearShape gate_up_shape, down_shape;
  Buffer gate_up, down;
  std::vector<Matrix> gate_up_weights, down_weights;
  std::vector<int32_t> experts;
  std::vector<float> weights;
};

class MoeParity : public ArithmeticTest {};
INSTANTIATE_TEST_SUITE_P(All, MoeParity, AllParams(), NameOfParam);

TEST_P(MoeParity, MlpEqualsFloat64WithinRounding) {
  MoeCase moe(backend_, dtype(), role());
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
  MoeCase moe(backend_, dtype(), role());
  const Matrix x = RandomMatrix(dtype(), 130, MoeCase::kHidden, 22);
  EXPECT_TRUE(RowsKeepTheirBits<float>(x, [&](const Matrix& rows) { return moe.Run(rows); }));
}

}  // namespace
}  // namespace plumbline
