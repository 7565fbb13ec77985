// Attention and QkNormRope over CUDA: a row's bits are those it has alone, whichever kernel takes it, and under any order of
// the threads. That they are the right ones: attention_parity_test.
#include "kernels/cuda/attention.cuh"

#include <map>
#include <utility>

#include "tests/cuda_host/cuda_runtime.h"
#include "tests/ops_test_util.h"

namespace plumbline {
namespace {

struct Heads {
  int64_t heads, kv_heads, head_dim;
  bool gated = false;
};

// One sequence with all its queries, keys, values and gates, and strangers who share its steps. Cache rows nobody wrote are
// NaN.
class Step {
 public:
  Step(DType dtype, const Heads& heads, int length) : dtype_(dtype), heads_(heads), length_(length) {
    Random random(11);
    const int64_t blocks = BlocksOf(length);
    q_ = random.Tensor(dtype, {length, heads.heads, heads.head_dim}, 1.5);
    gates_ = random.Tensor(DType::kF32, {length, 2 * heads.heads * heads.head_dim});
    keys_ = random.Tensor(dtype, {2 * blocks, heads.kv_heads, kBlockTokens, heads.head_dim});
    values_ = random.Tensor(dtype, keys_.shape);
  }

  // Rows of sequence 0 by position. Sequence 1 is a stranger with blocks of its own, where it may meet NaNs; with the same
  // queries.
  std::map<int, std::vector<float>> Run(Backend& backend, const std::vector<StepPart>& parts, int spare_blocks = 0,
                                        int gap = 0) const {
    const int blocks = BlocksOf(length_);
    std::vector<std::vector<int32_t>> tables(2);
    for (int i = 0; i < blocks; ++i) tables[0].push_back(2 * i), tables[1].push_back(2 * i + 1);
    for (auto& table : tables) table.resize(blocks + spare_blocks, -1);
    HostTensor keys = keys_, values = values_;
    int64_t num_rows = 0;
    for (const StepPart& part : parts) {
      num_rows += part.num_rows;
      const int64_t row = heads_.head_dim;
      for (int p = part.start + part.num_rows; p < blocks * kBlockTokens; ++p) {
        for (int64_t head = 0; head < heads_.kv_heads; ++head) {
          const int64_t block = tables[part.sequence][p / kBlockTokens];
          const int64_t at = ((block * heads_.kv_heads + head) * kBlockTokens + p % kBlockTokens) * row;
          for (int64_t i = 0; i < row; ++i) keys.Set(at + i, NAN), values.Set(at + i, NAN);
        }
      }
    }
    const int64_t width = heads_.heads * heads_.head_dim;
    HostTensor q(dtype_, {num_rows, heads_.heads, heads_.head_dim}), gates(DType::kF32, {num_rows, 2 * width});
    HostTensor out(dtype_, {num_rows, width + gap});  // rows lie further apart by the gap, which stays as it is
    out.Fill(-77);
    int64_t row = 0;
    for (const StepPart& part : parts) {
      for (int i = 0; i < part.num_rows; ++i, ++row) {
        for (int64_t j = 0; j < width; ++j) q.Set(row * width + j, q_.Get((part.start + i) * width + j));
        for (int64_t j = 0; j < 2 * width; ++j) gates.Set(row * 2 * width + j, gates_.Get((part.start + i) * 2 * width + j));
      }
    }
    const StepRows rows(parts, tables, {});
    backend.ops->Attention({.out = Tensor(out.bytes.data(), dtype_, {num_rows, width}, width + gap),
                            .q = q,
                            .k_cache = keys,
                            .v_cache = values,
                            .qkv = heads_.gated ? ConstTensor(gates) : ConstTensor(),
                            .sequences = rows.view(),
                            .scale = 0.11f,
                            .gated = heads_.gated});
    std::map<int, std::vector<float>> result;
    row = 0;
    for (const StepPart& part : parts) {
      for (int i = 0; i < part.num_rows; ++i, ++row) {
        std::vector<float> values = out.Row(row, width + gap);
        for (int j = 0; j < gap; ++j) EXPECT_EQ(values[width + j], -77);
        values.resize(width);
        if (part.sequence == 0) result[part.start + i] = values;
      }
    }
    return result;
  }

 private:
  static int BlocksOf(int length) { return (length + kBlockTokens - 1) / kBlockTokens; }

  DType dtype_;
  Heads heads_;
  int length_;
  HostTensor q_, gates_, keys_, values_;
};

std::vector<float> Flat(const std::map<int, std::vector<float>>& rows) {
  std::vector<float> all;
  for (const auto& [position, row] : rows) all.insert(all.end(), row.begin(), row.end());
  return all;
}

constexpr Heads kShapes[] = {{4, 2, 64, true}, {6, 1, 256, true}, {20, 1, 24}, {3, 1, 128}};

TEST(CudaAttention, RowsHaveTheBitsTheyHaveAlone) {
  Backend backend = MakeCudaBackend(0);
  for (const Heads& heads : kShapes) {
    const int start = 448, length = start + 130;  // over a border of segments
    const Step step(DType::kBf16, heads, length);
    std::map<int, std::vector<float>> alone;
    for (int position : {448, 449, 450, 454, 463, 464, 511, 512, 577}) alone.merge(step.Run(backend, {{0, position, 1, 0}}));
    for (int num_rows : {1, 2, 3, 7, 16, 17, 64, 130}) {
      const std::vector<std::vector<StepPart>> steps = {{{0, start, num_rows, num_rows}},
                                                        {{1, 64, 5, 5}, {0, start, num_rows, num_rows}, {1, 69, 1, 0}}};
      for (const std::vector<StepPart>& parts : steps) {
        if (parts.size() > 1 && num_rows > 17 && heads.head_dim > 64) continue;
        int seen = 0;
        for (const auto& [position, row] : step.Run(backend, parts)) {
          if (!alone.contains(position)) continue;
          ++seen;
          EXPECT_EQ(row, alone.at(position))
              << num_rows << " rows, position " << position << ", head dim " << heads.head_dim;
        }
        EXPECT_GT(seen, 0);
      }
    }
  }
}

// Room for more positions in the block table than there are.
TEST(CudaAttention, BitsDoNotDependOnTheBlockTablesWidth) {
  Backend backend = MakeCudaBackend(0);
  const Step step(DType::kF16, {16, 2, 256}, 1100);
  const std::vector<StepPart> parts = {{0, 1097, 1, 0}, {1, 300, 1, 0}, {1, 301, 1, 0}};
  const auto expected = step.Run(backend, parts);
  EXPECT_EQ(step.Run(backend, parts, 100), expected);
}

TEST(CudaAttention, RowsOfTheOutputMayLieApart) {
  Backend backend = MakeCudaBackend(0);
  const std::vector<StepPart> parts = {{0, 256, 40, 40}, {1, 299, 1, 0}, {1, 290, 1, 0}};
  for (DType dtype : kActTypes) {
    const Step step(dtype, kShapes[0], 300);
    EXPECT_EQ(step.Run(backend, parts, 0, 3), step.Run(backend, parts)) << NameOf(dtype);
  }
}

// Segments that are taken in passes, as many at a time as the room for partial results allows, merge to the same bits.
TEST(CudaAttention, BitsDoNotDependOnTheNumberOfPasses) {
  constexpr int kTokens = 1290, kBlocks = (kTokens + kBlockTokens - 1) / kBlockTokens, kDim = 64, kHeads = 3;
  Random random(2);
  const HostTensor q = random.Tensor(DType::kBf16, {2, kHeads, kDim}, 1.5);
  const HostTensor keys = random.Tensor(DType::kBf16, {kBlocks, 1, kBlockTokens, kDim});
  const HostTensor values = random.Tensor(DType::kBf16, keys.shape);
  std::vector<int32_t> table = random.Permutation(kBlocks);
  const StepRows rows({{0, kTokens - 1, 1, 0}, {1, 300, 1, 0}}, {table, table}, {});
  const auto run = [&](int64_t max_partial_floats, int* num_passes) {
    HostTensor out(DType::kBf16, {2, kHeads * kDim});
    const SequenceRows view = rows.view();
    const cuda::AttentionInput<Bf16> input = {.out = reinterpret_cast<Bf16*>(out.bytes.data()),
                                              .out_stride = kHeads * kDim,
                                              .q = reinterpret_cast<const Bf16*>(q.bytes.data()),
                                              .k_cache = reinterpret_cast<const Bf16*>(keys.bytes.data()),
                                              .v_cache = reinterpret_cast<const Bf16*>(values.bytes.data()),
                                              .row_begin = view.row_begin.as<int32_t>(),
                                              .start = view.start.as<int32_t>(),
                                              .block_table = view.block_table.as<int32_t>(),
                                              .max_blocks = kBlocks,
                                              .num_rows = 2,
                                              .num_sequences = 2,
                                              .heads = kHeads,
                                              .kv_heads = 1,
                                              .head_dim = kDim,
                                              .scale = 0.125f * cuda::kLog2OfE,
                                              .short_tokens = 5};
    const cuda::SplitPlan plan = cuda::PlanSplit(input, max_partial_floats);
    *num_passes = plan.num_passes;
    std::vector<float> workspace(plan.workspace_floats + 4, NAN);
    workspace.back() = 7;
    cuda::LaunchSplitAttention(input, plan, workspace.data(), nullptr);
    EXPECT_EQ(workspace.back(), 7);
    return out.Floats();
  };
  HostTensor reference(DType::kBf16, {2, kHeads * kDim});
  MakeReferenceBackend().ops->Attention(
      {.out = reference, .q = q, .k_cache = keys, .v_cache = values, .sequences = rows.view(), .scale = 0.125f});
  int num_passes = 0;
  const std::vector<float> whole = run(int64_t{1} << 20, &num_passes);
  EXPECT_EQ(num_passes, 1);
  ExpectNear(whole, reference.Floats(), {2.01 * UnitOf(DType::kBf16), 4.5 * 0x1p-16}, "one pass");
  for (int per_pass : {1, 2, 4, 5}) {
    EXPECT_EQ(run(per_pass * 2 * kHeads * (kDim + 4), &num_passes), whole) << per_pass;
    EXPECT_EQ(num_passes, (6 + per_pass - 1) / per_pass);
  }
}

TEST(CudaAttention, BitsDoNotDependOnTheOrderOfThreads) {
  Backend reference = MakeReferenceBackend();
  for (DType dtype : {DType::kBf16, DType::kF32}) {
    for (const Heads& heads : kShapes) {
      const Step step(dtype, heads, 300);
      const std::vector<StepPart> parts = {{0, 256, 30, 30}, {1, 290, 1, 0}, {1, 0, 9, 9}};
      std::map<int, std::vector<float>> expected;
      for (uint64_t seed : {0, 1, 2, 3}) {
        Backend backend = MakeCudaBackend(0);
        cuda_host::SetFiberSeed(seed);
        const auto rows = step.Run(backend, parts);
        cuda_host::SetFiberSeed(0);
        if (seed == 0) {
          expected = rows;
          ExpectNear(Flat(rows), Flat(step.Run(reference, parts)), {2.01 * UnitOf(dtype), 4.5 * 0x1p-16}, "reference");
        }
        EXPECT_EQ(rows, expected) << "seed " << seed << ", head dim " << heads.head_dim;
      }
    }
  }
}

// Nothing but kernels: a step's ops neither allocate (once the largest step has run), copy nor wait.
TEST(CudaAttention, OnlyLaunches) {
  Backend backend = MakeCudaBackend(0);
  const Step step(DType::kBf16, kShapes[0], 300);
  const std::vector<StepPart> parts = {{0, 290, 1, 0}, {1, 0, 9, 9}};
  step.Run(backend, parts);
  std::map<std::string, int64_t> calls;
  const std::vector<std::string> names = {"cudaMalloc", "cudaFree", "cudaStreamSynchronize", "cudaMemcpyAsync up",
                                          "cudaMemsetAsync"};
  for (const std::string& name : names) calls[name] = cuda_host::CallsOf(name);
  step.Run(backend, parts);
  for (const std::string& name : names) EXPECT_EQ(cuda_host::CallsOf(name), calls[name]) << name;
}

// Row t of the queries and caches that QkNormRope writes, for the first rows of a larger step.
TEST(CudaQkNormRope, RowsHaveTheBitsTheyHaveAlone) {
  Backend backend = MakeCudaBackend(0);
  constexpr int kRows = 130;
  for (const Heads& heads : {Heads{6, 2, 256, true}, Heads{3, 3, 10}}) {
    Random random(4);
    const int64_t half = heads.head_dim / 2 - 1 - heads.head_dim % 4 / 2;
    const int64_t width = heads.head_dim * (heads.heads * (heads.gated ? 2 : 1) + 2 * heads.kv_heads);
    const HostTensor qkv = random.Tensor(DType::kF32, {kRows, width}), norm = random.Tensor(DType::kF32, {heads.head_dim});
    const HostTensor cos = random.Tensor(DType::kF32, {kRows, half}), sin = random.Tensor(DType::kF32, {kRows, half});
    // Queries and cache after rows [first, first + count), from the queries' row `row` of the step on.
    const auto run = [&](int64_t first, int64_t count, uint64_t seed) {
      std::vector<int32_t> slots;
      for (int64_t i = 0; i < count; ++i) slots.push_back(static_cast<int32_t>(first + i));
      HostTensor q(DType::kBf16, {count, heads.heads, heads.head_dim});
      HostTensor k(DType::kBf16, {3, heads.kv_heads, kBlockTokens, heads.head_dim}), v = k;
      cuda_host::SetFiberSeed(seed);
      backend.ops->QkNormRope({.q = q,
                               .k_cache = k,
                               .v_cache = v,
                               .qkv = ConstTensor(qkv).Rows(first, count),
                               .q_norm = norm,
                               .k_norm = norm,
                               .cos = ConstTensor(cos).Rows(first, count),
                               .sin = ConstTensor(sin).Rows(first, count),
                               .slots = HostTensor({count}, slots),
                               .eps = 1e-6f,
                               .gated = heads.gated});
      cuda_host::SetFiberSeed(0);
      std::map<int64_t, std::vector<float>> rows;
      for (int64_t i = 0; i < count; ++i) {
        std::vector<float>& row = rows[first + i] = q.Row(i, heads.heads * heads.head_dim);
        for (int64_t head = 0; head < heads.kv_heads; ++head) {
          const int64_t slot = first + i,
                        at = (slot / kBlockTokens * heads.kv_heads + head) * kBlockTokens + slot % kBlockTokens;
          for (const HostTensor* cache : {&k, &v}) {
            const std::vector<float> values = cache->Row(at, heads.head_dim);
            row.insert(row.end(), values.begin(), values.end());
          }
        }
      }
      return rows;
    };
    std::map<int64_t, std::vector<float>> alone;
    for (int64_t t = 0; t < kRows; ++t) alone.merge(run(t, 1, 0));
    for (int64_t num_rows : {2, 3, 7, 16, 17, 64, 130}) {
      for (const auto& [t, row] : run(kRows - num_rows, num_rows, num_rows % 4))
        EXPECT_EQ(row, alone.at(t)) << num_rows << ", row " << t;
    }
  }
}

// Queries alone, then keys and values alone: what they give together. Dims that no rotation reaches, and that are no
// multiple of 4.
TEST(CudaQkNormRope, PartsAreTheWhole) {
  Backend backend = MakeCudaBackend(0);
  constexpr int64_t kRows = 5;
  const HostTensor slots({kRows}, {7, 64, 3, 127, 0});
  for (DType dtype : kActTypes) {
    for (const Heads& heads : {Heads{4, 2, 64, true}, Heads{3, 3, 34}}) {
      Random random(6);
      const int64_t dim = heads.head_dim, half = dim / 4, q_width = dim * heads.heads * (heads.gated ? 2 : 1);
      const int64_t kv_width = 2 * dim * heads.kv_heads;
      const HostTensor qkv = random.Tensor(DType::kF32, {kRows, q_width + kv_width}),
                       norm = random.Tensor(DType::kF32, {dim});
      const HostTensor cos = random.Tensor(DType::kF32, {kRows, half}), sin = random.Tensor(DType::kF32, {kRows, half});
      const auto columns = [&](int64_t first, int64_t count) {
        HostTensor part(DType::kF32, {kRows, count});
        for (int64_t i = 0; i < kRows * count; ++i)
          part.Set(i, qkv.Get(i / count * (q_width + kv_width) + first + i % count));
        return part;
      };
      const auto run = [&](bool in_parts, Backend& on) {
        HostTensor q(dtype, {kRows, heads.heads, dim}), k(dtype, {2, heads.kv_heads, kBlockTokens, dim}), v = k;
        QkNormRopeArgs args = {.q = q,
                               .k_cache = k,
                               .v_cache = v,
                               .qkv = qkv,
                               .q_norm = norm,
                               .k_norm = norm,
                               .cos = cos,
                               .sin = sin,
                               .slots = slots,
                               .norm_offset = 1,
                               .eps = 1e-6f,
                               .gated = heads.gated};
        if (in_parts) {
          const HostTensor queries = columns(0, q_width), others = columns(q_width, kv_width);
          QkNormRopeArgs part = args;
          part.qkv = queries;
          part.k_cache = part.v_cache = Tensor(nullptr, dtype, {2, 0, kBlockTokens, dim});
          part.slots = ConstTensor();
          on.ops->QkNormRope(part);
          part = args;
          part.qkv = others;
          part.q = Tensor(nullptr, dtype, {kRows, 0, dim});
          on.ops->QkNormRope(part);
        } else {
          on.ops->QkNormRope(args);
        }
        std::vector<float> all = q.Floats();
        for (const HostTensor* cache : {&k, &v}) {
          const std::vector<float> values = cache->Floats();
          all.insert(all.end(), values.begin(), values.end());
        }
        return all;
      };
      const std::vector<float> whole = run(false, backend);
      EXPECT_EQ(run(true, backend), whole);
      Backend reference = MakeReferenceBackend();
      ExpectNear(whole, run(false, reference), {2.01 * UnitOf(dtype), 40 * 8 * 0x1p-24}, NameOf(dtype));
    }
  }
}

}  // namespace
}  // namespace plumbline
