// QkvLinear and ConvGatedDeltaNet: the bits of the ops they stand for, one after the other; and of QkvLinear in two parts.
#include "tests/ops_test_util.h"

namespace plumbline {
namespace {

class FusedOps : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Cpu, FusedOps, testing::ValuesIn(TestedArithmetics()));

Buffer Packed(Backend& backend, const LinearShape& shape, const ConstTensor& weight) {
  const int64_t num_bytes = backend.ops->PackedBytes(shape);
  Buffer packed = backend.device->Allocate(num_bytes);
  backend.ops->PackLinear({.out = packed.View(DType::kU8, {num_bytes}), .shape = shape, .source = weight});
  return packed;
}

struct Heads {
  int64_t heads, kv_heads, head_dim;
  bool gated = false;
  int64_t query_columns() const { return heads * head_dim * (gated ? 2 : 1); }
  int64_t columns() const { return query_columns() + 2 * kv_heads * head_dim; }
};

enum class QkvCalls { kTwoOps, kFused, kFusedQueriesThenKeysAndValues };

// Query rows, both caches and the gates that the calls leave.
std::vector<float> RunQkv(Backend& backend, const Heads& heads, DType dtype, int64_t num_rows, QkvCalls calls) {
  Random random(7);
  const int64_t inputs = 96, half = heads.head_dim / 4, num_blocks = num_rows / kBlockTokens + 1;
  const HostTensor weight = random.Tensor(dtype, {heads.columns(), inputs});
  const HostTensor x = random.Tensor(dtype, {num_rows, inputs}), bias = random.Tensor(DType::kF32, {heads.columns()});
  const HostTensor cos = random.Tensor(DType::kF32, {num_rows, half}), sin = random.Tensor(DType::kF32, {num_rows, half});
  const HostTensor q_norm = random.Tensor(DType::kF32, {heads.head_dim}), k_norm = q_norm;
  const HostTensor slots({num_rows}, random.Permutation(static_cast<int32_t>(num_rows)));
  HostTensor q(dtype, {num_rows, heads.heads, heads.head_dim});
  HostTensor keys(dtype, {num_blocks, heads.kv_heads, kBlockTokens, heads.head_dim}), values = keys;
  std::vector<float> all;
  // The heads whose weights are rows [first_row, first_row + part.columns()).
  const auto project = [&](int64_t first_row, const Heads& part) {
    const LinearShape shape = {.n = part.columns(), .k = inputs, .dtype = dtype};
    const Buffer packed = Packed(backend, shape, ConstTensor(weight).Rows(first_row, shape.n));
    const Shape cache_shape = {num_blocks, part.kv_heads, kBlockTokens, heads.head_dim};
    HostTensor qkv(DType::kF32, {num_rows, shape.n});
    const LinearArgs linear = {.out = qkv,
                               .x = x,
                               .weight = packed.View(DType::kU8, {backend.ops->PackedBytes(shape)}),
                               .shape = shape,
                               .bias = ConstTensor(bias).Rows(first_row, shape.n)};
    const QkNormRopeArgs rope = {
        .q = part.heads > 0 ? Tensor(q) : Tensor(nullptr, dtype, {num_rows, 0, heads.head_dim}),
        .k_cache = part.kv_heads > 0 ? Tensor(keys) : Tensor(nullptr, dtype, cache_shape),
        .v_cache = part.kv_heads > 0 ? Tensor(values) : Tensor(nullptr, dtype, cache_shape),
        .qkv = qkv, .q_norm = q_norm, .k_norm = k_norm, .cos = cos, .sin = sin,
        .slots = part.kv_heads > 0 ? ConstTensor(slots) : ConstTensor(),
        .norm_offset = 1, .eps = 1e-6f, .gated = heads.gated};
    if (calls == QkvCalls::kTwoOps) {
      backend.ops->Linear(linear);
      backend.ops->QkNormRope(rope);
    } else {
      backend.ops->QkvLinear({.linear = linear, .rope = rope});
    }
    for (int64_t t = 0; t < num_rows && heads.gated; ++t) {
      for (int64_t c = 0; c < part.query_columns(); ++c) {
        if (c / heads.head_dim % 2 == 1) all.push_back(qkv.Get(t * shape.n + c));
      }
    }
  };
  if (calls == QkvCalls::kFusedQueriesThenKeysAndValues) {
    project(0, {heads.heads, 0, heads.head_dim, heads.gated});
    project(heads.query_columns(), {0, heads.kv_heads, heads.head_dim, heads.gated});
  } else {
    project(0, heads);
  }
  for (const HostTensor* tensor : {&q, &keys, &values}) {
    const std::vector<float> floats = tensor->Floats();
    all.insert(all.end(), floats.begin(), floats.end());
  }
  return all;
}

void ExpectQkvCallsEqual(Backend& backend, const std::vector<int64_t>& row_counts) {
  for (DType dtype : kActTypes) {
    for (const Heads& heads :
         {Heads{4, 2, 64}, Heads{3, 1, 128, true}, Heads{2, 2, 32}, Heads{1, 1, 256}, Heads{3, 3, 20}}) {
      for (int64_t num_rows : row_counts) {
        const std::vector<float> expected = RunQkv(backend, heads, dtype, num_rows, QkvCalls::kTwoOps);
        for (QkvCalls calls : {QkvCalls::kFused, QkvCalls::kFusedQueriesThenKeysAndValues}) {
          EXPECT_EQ(RunQkv(backend, heads, dtype, num_rows, calls), expected)
              << NameOf(dtype) << " head dim " << heads.head_dim << " rows " << num_rows << " calls "
              << static_cast<int>(calls);
        }
      }
    }
  }
}

TEST_P(FusedOps, QkvLinearEqualsLinearAndQkNormRopeWholeAndInParts) {
  Backend backend = BackendOf(GetParam(), 3);
  ExpectQkvCallsEqual(backend, {1, 5, 70, 300});
}

TEST(FusedOpsReference, QkvLinearInPartsIsTheWhole) {
  Backend backend = MakeReferenceBackend();
  ExpectQkvCallsEqual(backend, {1, 5});
}

struct Channels {
  int64_t key_heads, value_heads, key_dim, value_dim;
  int64_t convolved() const { return 2 * key_heads * key_dim + value_heads * value_dim; }
  int64_t gates() const { return value_heads * (value_dim + 2); }
};

#ifdef PLUMBLINE_TEST_CUDA
constexpr int kLongPrompt = 130;  // threads are fibers
#else
constexpr int kLongPrompt = 330;
#endif

// Rows and both states after two steps of three sequences, one of them longer than what is taken at a time.
std::vector<float> RunDeltaNet(Backend& backend, const Channels& channels, DType dtype, bool fused) {
  Random random(9);
  const int64_t columns = channels.value_heads * channels.value_dim;
  const HostTensor weight = random.Tensor(DType::kF32, {channels.convolved(), 4}, 0.5);
  const HostTensor a_log = random.Tensor(DType::kF32, {channels.value_heads}), dt_bias = a_log;
  const HostTensor norm = random.Tensor(DType::kF32, {channels.value_dim}, 0.2, 1);
  HostTensor conv_state(dtype, {3, channels.convolved(), 3});
  HostTensor state(DType::kF32, {3, channels.value_heads, channels.key_dim, channels.value_dim});
  conv_state.Fill(NAN);
  state.Fill(NAN);
  std::vector<float> all;
  const std::vector<std::vector<StepPart>> steps = {{{0, 0, kLongPrompt, kLongPrompt}, {1, 0, 64, 64}, {2, 0, 9, 5}},
                                                    {{1, 64, kLongPrompt - 40, kLongPrompt - 60},
                                                     {0, kLongPrompt, 1, 0},
                                                     {2, 9, 2, 0}}};
  for (const std::vector<StepPart>& parts : steps) {
    int64_t num_rows = 0;
    for (const StepPart& part : parts) num_rows += part.num_rows;
    const StepRows rows(parts, {}, {2, 0, 1});
    const HostTensor qkv = random.Tensor(dtype, {num_rows, channels.convolved()});
    const HostTensor gates = random.Tensor(DType::kF32, {num_rows, channels.gates()});
    HostTensor convolved(DType::kF32, {num_rows, channels.convolved()}), out(dtype, {num_rows, columns});
    const CausalConvArgs conv = {.out = convolved, .state = conv_state, .x = qkv, .weight = weight,
                                 .sequences = rows.view()};
    const GatedDeltaNetArgs delta = {.out = out, .state = state, .conv = convolved, .gates = gates,
                                     .a_log = a_log, .dt_bias = dt_bias, .norm = norm, .sequences = rows.view(),
                                     .num_key_heads = channels.key_heads, .eps = 1e-6f};
    if (fused) {
      backend.ops->ConvGatedDeltaNet({.conv = conv, .delta = delta});
    } else {
      backend.ops->CausalConv(conv);
      backend.ops->GatedDeltaNet(delta);
    }
    const std::vector<float> floats = out.Floats();
    all.insert(all.end(), floats.begin(), floats.end());
  }
  for (const HostTensor* tensor : {&conv_state, &state}) {
    const std::vector<float> floats = tensor->Floats();
    all.insert(all.end(), floats.begin(), floats.end());
  }
  return all;
}

TEST_P(FusedOps, ConvGatedDeltaNetEqualsCausalConvAndGatedDeltaNet) {
  Backend backend = BackendOf(GetParam(), 3);
  for (DType dtype : kActTypes) {
    for (const Channels& channels : {Channels{2, 2, 16, 16}, Channels{1, 3, 64, 128}, Channels{2, 4, 24, 40}}) {
      EXPECT_EQ(RunDeltaNet(backend, channels, dtype, true), RunDeltaNet(backend, channels, dtype, false))
          << NameOf(dtype) << " key dim " << channels.key_dim;
    }
  }
}

// The comparison sees a difference: gated heads take other columns.
TEST_P(FusedOps, ComparisonSeesDifferences) {
  Backend backend = BackendOf(GetParam());
  EXPECT_NE(RunQkv(backend, {4, 2, 64}, DType::kF32, 5, QkvCalls::kFused),
            RunQkv(backend, {4, 2, 64, true}, DType::kF32, 5, QkvCalls::kFused));
}

}  // namespace
}  // namespace plumbline
