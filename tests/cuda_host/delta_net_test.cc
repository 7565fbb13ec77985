// CausalConv and GatedDeltaNet on CUDA: bits that no other sequence, number of rows or order of threads can change; sizes
// that the parity tests leave out.
#include <functional>
#include <utility>

#include "tests/cuda_host/cuda_runtime.h"
#include "tests/ops_test_util.h"

namespace plumbline {
namespace {

struct Sizes {
  int64_t key_heads, value_heads, key_dim, value_dim;
  int64_t width = 4;
  int64_t channels() const { return 2 * key_heads * key_dim + value_heads * value_dim; }
  int64_t gates() const { return value_heads * (value_dim + 2); }
};

// What one step leaves: rows and states of each part, in the order of parts.
struct Result {
  std::vector<std::vector<float>> rows, states;
  bool operator==(const Result&) const = default;
};

// Inputs of a sequence are a function of its number and the position, its states of before, too; those of `nan_sequence` are
// NaN. Rows of x and out lie `gap` elements apart.
struct Setting {
  int nan_sequence = -1;
  int64_t gap = 0;
};
Result RunStep(Backend& backend, const Sizes& sizes, DType dtype, const std::vector<StepPart>& parts,
               const Setting& setting = {}) {
  int64_t num_rows = 0;
  int num_slots = 0;
  for (const StepPart& part : parts) {
    num_rows += part.num_rows;
    num_slots = std::max(num_slots, part.sequence + 1);
  }
  HostTensor x(dtype, {num_rows, sizes.channels() + setting.gap}), gates(DType::kF32, {num_rows, sizes.gates()});
  HostTensor conv_state(dtype, {num_slots, sizes.channels(), sizes.width - 1});
  HostTensor state(DType::kF32, {num_slots, sizes.value_heads, sizes.key_dim, sizes.value_dim});
  std::vector<int32_t> slots(num_slots);
  const auto fill = [&](HostTensor& tensor, int64_t row, const StepPart& part, int salt) {
    Random random(1000 * part.sequence + salt);
    const int64_t columns = tensor.size() / tensor.shape[0];
    for (int64_t c = 0; c < columns; ++c) {
      tensor.Set(row * columns + c, part.sequence == setting.nan_sequence ? NAN : random.Normal());
    }
  };
  int64_t row = 0;
  for (const StepPart& part : parts) {
    slots[part.sequence] = num_slots - 1 - part.sequence;
    fill(conv_state, slots[part.sequence], part, 500);
    fill(state, slots[part.sequence], part, 501);
    for (int i = 0; i < part.num_rows; ++i, ++row) {
      fill(x, row, part, part.start + i);
      fill(gates, row, part, part.start + i + 250);
    }
  }
  Random random(3);
  const HostTensor weight = random.Tensor(DType::kF32, {sizes.channels(), sizes.width}, 0.5);
  const HostTensor a_log = random.Tensor(DType::kF32, {sizes.value_heads}, 1, -1),
                   norm = random.Tensor(DType::kF32, {sizes.value_dim});
  const int64_t values = sizes.value_heads * sizes.value_dim;
  HostTensor conv(DType::kF32, {num_rows, sizes.channels()}), out(dtype, {num_rows, values + setting.gap});
  constexpr float kBetween = 7;
  out.Fill(kBetween);
  const Tensor spread_x(x.bytes.data(), dtype, {num_rows, sizes.channels()}, sizes.channels() + setting.gap);
  const Tensor spread_out(out.bytes.data(), dtype, {num_rows, values}, values + setting.gap);
  const StepRows rows(parts, {}, slots);
  backend.ops->CausalConv({.out = conv, .state = conv_state, .x = spread_x, .weight = weight, .sequences = rows.view()});
  backend.ops->GatedDeltaNet({.out = spread_out,
                              .state = state,
                              .conv = conv,
                              .gates = gates,
                              .a_log = a_log,
                              .dt_bias = a_log,
                              .norm = norm,
                              .sequences = rows.view(),
                              .num_key_heads = sizes.key_heads,
                              .eps = 1e-6f});
  Result result;
  row = 0;
  for (const StepPart& part : parts) {
    for (int i = 0; i < part.num_rows; ++i, ++row) {
      result.rows.push_back(conv.Row(row, sizes.channels()));
      std::vector<float> o = out.Row(row, values + setting.gap);
      for (int64_t i = values; i < values + setting.gap; ++i) EXPECT_EQ(o[i], kBetween) << "behind row " << row;
      o.resize(values);
      result.rows.back().insert(result.rows.back().end(), o.begin(), o.end());
    }
    for (const HostTensor* tensor : {&conv_state, &state}) {
      result.states.push_back(tensor->Row(slots[part.sequence], tensor->size() / num_slots));
    }
  }
  return result;
}

std::vector<float> Flat(const std::vector<std::vector<float>>& rows) {
  std::vector<float> all;
  for (const auto& row : rows) all.insert(all.end(), row.begin(), row.end());
  return all;
}

TEST(CudaDeltaNet, OrderOfThreadsDoesNotShow) {
  Backend backend = MakeCudaBackend(0);
  for (const Sizes& sizes : {Sizes{1, 2, 32, 48}, Sizes{1, 5, 19, 21}, Sizes{1, 1, 128, 32}}) {
    for (DType dtype : {DType::kBf16, DType::kF32}) {
      const std::vector<StepPart> parts = {{0, 0, 70, 67}, {1, 5, 2, 0}, {2, 64, 17, 17}, {3, 0, 1, 0}};
      const Result expected = RunStep(backend, sizes, dtype, parts);
      for (uint64_t seed : {1, 2, 3}) {
        cuda_host::SetFiberSeed(seed);
        EXPECT_EQ(RunStep(backend, sizes, dtype, parts), expected) << NameOf(dtype) << " seed " << seed;
      }
      cuda_host::SetFiberSeed(0);
    }
  }
}

// A gap that is odd leaves no row but the first aligned.
TEST(CudaDeltaNet, SpreadRowsGiveTheSameBits) {
  Backend backend = MakeCudaBackend(0);
  for (DType dtype : kActTypes) {
    const std::vector<StepPart> parts = {{0, 0, 21, 19}, {1, 5, 2, 0}};
    const Result dense = RunStep(backend, {1, 2, 32, 32}, dtype, parts);
    for (int64_t gap : {1, 4, 24}) {
      EXPECT_EQ(RunStep(backend, {1, 2, 32, 32}, dtype, parts, {.gap = gap}), dense) << NameOf(dtype) << " gap " << gap;
    }
  }
}

constexpr int kRowCounts[] = {1, 2, 3, 7, 16, 17, 64, 130};

TEST(CudaDeltaNet, GeneratedRowsDoNotDependOnTheirNumber) {
  Backend backend = MakeCudaBackend(0);
  const Sizes sizes = {1, 2, 32, 32};
  const Result alone = RunStep(backend, sizes, DType::kBf16, {{1, 9, 1, 0}});
  for (int count : kRowCounts) {
    std::vector<StepPart> parts;  // sequence 1 is the last but one
    for (int i = 1; i < count; ++i) parts.push_back({i + 1, 7 + i, 1, 0});
    parts.insert(parts.end() - (count > 1 ? 1 : 0), {1, 9, 1, 0});
    const size_t at = parts.size() - (count > 1 ? 2 : 1);
    const Result result = RunStep(backend, sizes, DType::kBf16, parts,
                                  {.nan_sequence = parts.back().sequence == 1 ? -1 : parts.back().sequence});
    EXPECT_EQ(result.rows[at], alone.rows[0]) << count << " rows";
    EXPECT_EQ(result.states[2 * at], alone.states[0]) << count << " rows";
    EXPECT_EQ(result.states[2 * at + 1], alone.states[1]) << count << " rows";
  }
}

TEST(CudaDeltaNet, PromptRowsDoNotDependOnTheirNumber) {
  Backend backend = MakeCudaBackend(0);
  const Sizes sizes = {1, 2, 32, 40};
  const Result whole = RunStep(backend, sizes, DType::kBf16, {{0, 0, 130, 130}});
  for (int count : kRowCounts) {
    // Between strangers, one of them full of NaNs.
    const Result result = RunStep(backend, sizes, DType::kBf16,
                                  {{1, 64, 5, 5}, {0, 0, count, count}, {2, 0, 3, 3}, {3, 9, 2, 0}}, {.nan_sequence = 1});
    for (int i = 0; i < count; ++i) EXPECT_EQ(result.rows[5 + i], whole.rows[i]) << count << " rows, row " << i;
  }
}

TEST(CudaDeltaNet, ManySequencesWithAndWithoutPrompts) {
  Backend backend = MakeCudaBackend(0), reference = MakeReferenceBackend();
  const Sizes sizes = {1, 1, 16, 8};
  std::vector<StepPart> parts;
  for (int s = 0; s < 75; ++s) {
    const int num_prompt = s % 3 == 0 ? 0 : s % 7 + 1;
    parts.push_back({s, num_prompt > 0 ? 64 * (s % 2) : s, num_prompt + (s % 3 == 2 ? 0 : s % 2 + 1), num_prompt});
  }
  const Result actual = RunStep(backend, sizes, DType::kF32, parts),
               expected = RunStep(reference, sizes, DType::kF32, parts);
  ExpectNear(Flat(actual.rows), Flat(expected.rows), {1e-4, 1e-3}, "rows");
  ExpectNear(Flat(actual.states), Flat(expected.states), {1e-4, 1e-4}, "states");
}

// Long keys, heads that share none or many of them, widths but 4.
TEST(CudaDeltaNet, OtherSizesEqualReferenceWithinRounding) {
  Backend backend = MakeCudaBackend(0), reference = MakeReferenceBackend();
  for (const Sizes& sizes : {Sizes{1, 1, 256, 33, 2}, Sizes{1, 9, 8, 8, 3}, Sizes{3, 3, 72, 4, 8}, Sizes{1, 1, 1, 1, 5}}) {
    const std::vector<StepPart> parts = {{0, 0, 66, 65}, {1, 64, 9, 8}, {2, 3, 2, 0}, {3, 1, 11, 0}};
    const Result actual = RunStep(backend, sizes, DType::kF32, parts),
                 expected = RunStep(reference, sizes, DType::kF32, parts);
    // States are of size 1 and are read with up to 256 keys: as in the parity test, twice over.
    ExpectNear(Flat(actual.rows), Flat(expected.rows), {1e-4, 2e-3}, "rows, key dim " + std::to_string(sizes.key_dim));
    ExpectNear(Flat(actual.states), Flat(expected.states), {1e-5, 10 * (64 + 256) * 0x1p-24},
               "states, key dim " + std::to_string(sizes.key_dim));
  }
}

}  // namespace
}  // namespace plumbline
