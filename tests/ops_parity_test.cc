// Residual stream and sampling ops of every CPU arithmetic against the reference; Philox against its published vectors.
#include "kernels/philox.h"
#include "tests/ops_test_util.h"

namespace plumbline {
namespace {

class OpsTest : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Arithmetics, OpsTest, testing::ValuesIn(TestedArithmetics()));

TEST_P(OpsTest, EmbedAndTreesEqualReferenceExactly) {
  Backend backend = BackendOf(GetParam()), reference = MakeReferenceBackend();
  for (int64_t hidden : {1, 17, 64, 200}) {
    for (int64_t rows : {1, 3, 130}) {
      Random random(static_cast<uint32_t>(hidden + rows));
      for (DType dtype : kActTypes) {
        const HostTensor table = random.Tensor(dtype, {10, hidden});
        std::vector<int32_t> ids(rows);
        for (int32_t& id : ids) id = static_cast<int32_t>(random.Below(30));
        const auto run = [&](Backend& b) {
          HostTensor out = Random(1).Tensor(DType::kF32, {rows, hidden});
          b.ops->Embed({.out = out, .tokens = HostTensor({rows}, ids), .table = table, .vocab_begin = 11});
          return out.bytes;
        };
        EXPECT_EQ(run(backend), run(reference));
      }
      for (int64_t leaves : {1, 2, 4, 8}) {
        const HostTensor partials = random.Tensor(DType::kF32, {leaves, rows, hidden});
        const HostTensor h = random.Tensor(DType::kF32, {rows, hidden});
        const auto run = [&](Backend& b) {
          HostTensor sum(DType::kF32, {rows * hidden}), residual = h;
          HostTensor flat = partials;
          flat.shape = {leaves, rows * hidden};
          b.ops->TreeSum({.out = sum, .partials = flat});
          b.ops->ReduceAdd({.h = residual, .partials = partials});
          return std::pair(sum.bytes, residual.bytes);
        };
        EXPECT_EQ(run(backend), run(reference));
      }
    }
  }
}

TEST_P(OpsTest, NormsEqualReferenceAndRowsAreIndependent) {
  Backend backend = BackendOf(GetParam(), 3), reference = MakeReferenceBackend();
  for (int64_t hidden : {1, 15, 64, 100, 1000}) {
    for (DType dtype : kActTypes) {
      Random random(static_cast<uint32_t>(hidden));
      const int64_t rows = 17;
      const HostTensor h = random.Tensor(DType::kF32, {rows, hidden}), weight = random.Tensor(DType::kF32, {hidden});
      for (int64_t leaves : {0, 1, 8}) {
        const HostTensor partials = leaves == 0 ? HostTensor() : random.Tensor(DType::kF32, {leaves, rows, hidden});
        const auto run = [&](Backend& b, HostTensor& residual) {
          HostTensor out(dtype, {rows, hidden});
          b.ops->ReduceAddRmsNorm({.out = out, .h = residual, .partials = partials, .weight = weight,
                                   .weight_offset = 1, .eps = 1e-6f});
          return out;
        };
        HostTensor actual_h = h, expected_h = h;
        const HostTensor actual = run(backend, actual_h), expected = run(reference, expected_h);
        EXPECT_EQ(actual_h.bytes, expected_h.bytes);
        // The mean of D squares in another order: D / 2 roundings at worst, halved by the root.
        ExpectNear(actual.Floats(), expected.Floats(),
                   {2.01 * UnitOf(dtype) + static_cast<double>(hidden + 8) * 0x1p-25, 1e-30}, GetParam());
        // The same rows, picked in another order from the finished residual stream.
        const std::vector<int32_t> picks = {16, 3, 3, 0, 9};
        HostTensor picked(dtype, {5, hidden});
        backend.ops->RmsNormRows({.out = picked, .h = actual_h, .rows = HostTensor({5}, picks), .weight = weight,
                                  .weight_offset = 1, .eps = 1e-6f});
        for (int i = 0; i < 5; ++i) EXPECT_EQ(picked.Row(i, hidden), actual.Row(picks[i], hidden));
      }
    }
  }
}

TEST_P(OpsTest, ConcatAndPenaltiesEqualReferenceExactly) {
  Backend backend = BackendOf(GetParam()), reference = MakeReferenceBackend();
  const int64_t rows = 3, vocab = 37;
  Random random(2);
  const HostTensor parts = random.Tensor(DType::kF32, {4, rows, 10});
  const std::vector<int32_t> begins = {0, 3, 3, 7}, tokens = {36, 0, 5, 1, 2, 3, 4}, counts = {0, 2, 1, 0, 3, 0, 1},
                             seen = {1, 1, 1, 0, 1, 1, 0};
  const HostTensor bias = random.Tensor(DType::kF32, {7}), repetition = random.Tensor(DType::kF32, {rows}, 0.1f, 1.3f);
  const HostTensor presence = random.Tensor(DType::kF32, {rows}), frequency = random.Tensor(DType::kF32, {rows});
  const auto run = [&](Backend& b) {
    HostTensor logits(DType::kF32, {rows, vocab});
    b.ops->ConcatColumns({.out = logits, .parts = parts});
    b.ops->Penalties({.logits = logits, .entry_begin = HostTensor({rows + 1}, begins),
                      .token = HostTensor({7}, tokens), .count = HostTensor({7}, counts),
                      .seen = HostTensor({7}, seen), .bias = bias, .repetition = repetition, .presence = presence,
                      .frequency = frequency});
    return logits.bytes;
  };
  EXPECT_EQ(run(backend), run(reference));
}

struct SampleSettings {
  float temperature, top_p, min_p;
  int32_t top_k;
};

TEST_P(OpsTest, SampleDrawsTheReferenceTokens) {
  Backend backend = BackendOf(GetParam(), 3), reference = MakeReferenceBackend();
  const SampleSettings settings[] = {{0, 1, 0, 0},       {1, 1, 0, 0},       {0.7f, 0.9f, 0, 0},  {1, 0.5f, 0, 40},
                                     {1, 1, 0.1f, 0},    {0.3f, 1, 0, 1},    {2, 0.99f, 0.02f, 0}, {1, 1, 0, 7},
                                     {1.5f, 0.2f, 0.3f, 500}, {50, 0.95f, 0, 0}, {1, 1e-9f, 0, 0}, {5, 1, 0, 100000}};
  for (int64_t vocab : {1, 5, 255, 257, 1000, 5003}) {
    for (bool ties : {false, true}) {
      const int64_t rows = std::size(settings) * 3;
      Random random(static_cast<uint32_t>(vocab));
      HostTensor logits = random.Tensor(DType::kF32, {rows, vocab}, 3);
      for (int64_t i = 0; ties && i < logits.size(); ++i) logits.Set(i, std::round(logits.Get(i)));
      HostTensor temperature(DType::kF32, {rows}), top_p = temperature, min_p = temperature, seed(DType::kI64, {rows});
      std::vector<int32_t> top_k(rows), position(rows);
      for (int64_t r = 0; r < rows; ++r) {
        const SampleSettings& row = settings[r % std::size(settings)];
        temperature.Set(r, row.temperature);
        top_p.Set(r, row.top_p);
        min_p.Set(r, row.min_p);
        top_k[r] = row.top_k;
        position[r] = static_cast<int32_t>(random.Below(1000000));
        reinterpret_cast<int64_t*>(seed.bytes.data())[r] = -5 + r * 0x123456789abLL;
      }
      const auto run = [&](Backend& b) {
        HostTensor tokens({rows}, std::vector<int32_t>(rows, -1));
        b.ops->Sample({.tokens = tokens, .logits = logits, .temperature = temperature,
                       .top_k = HostTensor({rows}, top_k), .top_p = top_p, .min_p = min_p, .seed = seed,
                       .position = HostTensor({rows}, position)});
        const int32_t* ids = reinterpret_cast<const int32_t*>(tokens.bytes.data());
        return std::vector<int32_t>(ids, ids + rows);
      };
      EXPECT_EQ(run(backend), run(reference)) << "vocabulary " << vocab << " ties " << ties;
    }
  }
}

TEST_P(OpsTest, LogprobsEqualReference) {
  Backend backend = BackendOf(GetParam()), reference = MakeReferenceBackend();
  for (int64_t vocab : {1, 7, 256, 1003}) {
    for (int64_t num_top : {0, 1, 20}) {
      const int64_t rows = 5, top = std::min(num_top, vocab);
      Random random(static_cast<uint32_t>(vocab));
      HostTensor logits = random.Tensor(DType::kF32, {rows, vocab}, 3);
      for (int64_t v = 0; v < vocab; ++v) logits.Set(2 * vocab + v, std::round(logits.Get(2 * vocab + v)));
      std::vector<int32_t> targets;
      for (int64_t r = 0; r < rows; ++r) targets.push_back(static_cast<int32_t>(random.Below(vocab)));
      const auto run = [&](Backend& b) {
        HostTensor logprobs(DType::kF32, {rows}), ranks(DType::kI32, {rows});
        HostTensor ids = top == 0 ? HostTensor() : HostTensor(DType::kI32, {rows, top});
        HostTensor top_logprobs = top == 0 ? HostTensor() : HostTensor(DType::kF32, {rows, top});
        b.ops->Logprobs({.target_logprobs = logprobs, .target_ranks = ranks,
                         .top_ids = top == 0 ? Tensor() : Tensor(ids),
                         .top_logprobs = top == 0 ? Tensor() : Tensor(top_logprobs), .logits = logits,
                         .targets = HostTensor({rows}, targets)});
        return std::tuple(logprobs.bytes, ranks.bytes, ids.bytes, top_logprobs.bytes);
      };
      EXPECT_EQ(run(backend), run(reference)) << vocab << " tokens, top " << top;
    }
  }
}

// Known answers of the Random123 distribution (kat_vectors, philox4x32 10).
TEST(Philox, KnownAnswers) {
  using Words = std::array<uint32_t, 4>;
  EXPECT_EQ(Philox4x32({0, 0, 0, 0}, {0, 0}), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Philox4x32({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}), (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
  EXPECT_EQ(UniformDraw(0, 0), static_cast<double>((0x6627e8d5e169c58dULL) >> 11) * 0x1p-53);
}

}  // namespace
}  // namespace plumbline
