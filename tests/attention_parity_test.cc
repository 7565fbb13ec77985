// RopeTable, QkNormRope and Attention of every CPU arithmetic: equal to the reference within rounding, and with bits that
// depend on the row's own sequence alone.
#include <map>

#include "tests/ops_test_util.h"

namespace plumbline {
namespace {

struct Geometry {
  int64_t heads, kv_heads, head_dim;
  bool gated = false;
  int64_t width() const { return head_dim * (heads * (gated ? 2 : 1) + 2 * kv_heads); }
};

// Sequences with all their queries, keys, values and gates known beforehand: position p of a sequence has the same inputs
// whichever step it is in.
class AttentionWorld {
 public:
  AttentionWorld(DType dtype, Geometry geometry, const std::vector<int>& lengths)
      : dtype_(dtype), geometry_(geometry), lengths_(lengths) {
    Random random(7);
    for (int length : lengths) {
      q_.push_back(random.Tensor(dtype, {length, geometry.heads, geometry.head_dim}, 1.5));
      k_.push_back(random.Tensor(dtype, {length, geometry.kv_heads, geometry.head_dim}));
      v_.push_back(random.Tensor(dtype, {length, geometry.kv_heads, geometry.head_dim}));
      qkv_.push_back(random.Tensor(DType::kF32, {length, geometry.width()}));
    }
  }

  // Rows of the outputs by (sequence, position). Cache rows no token was written to are NaN, and so are spare blocks.
  std::map<std::pair<int, int>, std::vector<float>> Run(Backend& backend, const std::vector<StepPart>& parts,
                                                        uint32_t block_seed = 1) const {
    const int64_t heads = geometry_.heads, kv_heads = geometry_.kv_heads, dim = geometry_.head_dim;
    int num_blocks = 3, num_rows = 0;
    for (int length : lengths_) num_blocks += (length + kBlockTokens - 1) / kBlockTokens;
    std::vector<int32_t> blocks = Random(block_seed).Permutation(num_blocks);
    std::vector<std::vector<int32_t>> tables;
    for (int length : lengths_) {
      const int count = (length + kBlockTokens - 1) / kBlockTokens;
      tables.emplace_back(blocks.end() - count, blocks.end());
      blocks.resize(blocks.size() - count);
    }
    HostTensor k_cache(dtype_, {num_blocks, kv_heads, kBlockTokens, dim});
    k_cache.Fill(NAN);
    HostTensor v_cache = k_cache;
    for (const StepPart& part : parts) {
      num_rows += part.num_rows;
      for (int64_t p = 0; p < part.start + part.num_rows; ++p) {
        for (int64_t h = 0; h < kv_heads; ++h) {
          const int64_t block = tables[part.sequence][p / kBlockTokens];
          const int64_t at = ((block * kv_heads + h) * kBlockTokens + p % kBlockTokens) * dim;
          for (int64_t i = 0; i < dim; ++i) {
            k_cache.Set(at + i, k_[part.sequence].Get((p * kv_heads + h) * dim + i));
            v_cache.Set(at + i, v_[part.sequence].Get((p * kv_heads + h) * dim + i));
          }
        }
      }
    }
    HostTensor q(dtype_, {num_rows, heads, dim}), out(dtype_, {num_rows, heads * dim});
    HostTensor qkv(DType::kF32, {num_rows, geometry_.width()});
    int64_t row = 0;
    for (const StepPart& part : parts) {
      const auto copy = [&](const HostTensor& from, HostTensor& to) {
        const size_t row_bytes = from.bytes.size() / from.shape[0];
        std::memcpy(to.bytes.data() + row * row_bytes, from.bytes.data() + part.start * row_bytes,
                    part.num_rows * row_bytes);
      };
      copy(q_[part.sequence], q);
      copy(qkv_[part.sequence], qkv);
      row += part.num_rows;
    }
    const StepRows rows(parts, tables, {});
    backend.ops->Attention({.out = out, .q = q, .k_cache = k_cache, .v_cache = v_cache,
                            .qkv = geometry_.gated ? ConstTensor(qkv) : ConstTensor(), .sequences = rows.view(),
                            .scale = 1.0f / std::sqrt(static_cast<float>(dim)), .gated = geometry_.gated});
    std::map<std::pair<int, int>, std::vector<float>> result;
    row = 0;
    for (const StepPart& part : parts) {
      for (int i = 0; i < part.num_rows; ++i) {
        result[{part.sequence, part.start + i}] = out.Row(row++, heads * dim);
      }
    }
    return result;
  }

 private:
  DType dtype_;
  Geometry geometry_;
  std::vector<int> lengths_;
  std::vector<HostTensor> q_, k_, v_, qkv_;
};

using Rows = std::map<std::pair<int, int>, std::vector<float>>;

std::vector<float> Flat(const Rows& rows) {
  std::vector<float> all;
  for (const auto& [key, row] : rows) all.insert(all.end(), row.begin(), row.end());
  return all;
}

class AttentionTest : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Cpu, AttentionTest, testing::ValuesIn(TestedArithmetics()));

TEST_P(AttentionTest, EqualsReferenceWithinRounding) {
  Backend backend = BackendOf(GetParam()), reference = MakeReferenceBackend();
  const Geometry geometries[] = {{2, 2, 8}, {4, 1, 16, true}, {6, 1, 32}, {8, 1, 64, true}, {3, 3, 34}, {2, 1, 128},
                                 {6, 1, 256, true}};
  for (DType dtype : kActTypes) {
    for (const Geometry& geometry : geometries) {
      const AttentionWorld world(dtype, geometry, {1, 130, 300, 521});
      const std::vector<StepPart> parts = {{0, 0, 1, 1}, {3, 504, 17, 0}, {1, 64, 66, 66}, {2, 299, 1, 0}};
      // A weight keeps 16 bits where it goes through two bf16; its score is off by some 2^-21. |v| < 4.5.
      const Tolerance tolerance = {2.01 * UnitOf(dtype), dtype == DType::kBf16 ? 4.5 * 0x1p-16 : 4.5 * 0x1p-19};
      ExpectNear(Flat(world.Run(backend, parts)), Flat(world.Run(reference, parts)), tolerance,
                 GetParam() + " " + NameOf(dtype) + " head dim " + std::to_string(geometry.head_dim));
    }
  }
}

TEST_P(AttentionTest, BitsDependOnTheSequenceAlone) {
  Backend one = BackendOf(GetParam(), 1), three = BackendOf(GetParam(), 3);
  for (DType dtype : {DType::kBf16, DType::kF32}) {
    for (const Geometry& geometry : {Geometry{4, 2, 64, true}, Geometry{6, 1, 24}}) {
      const AttentionWorld world(dtype, geometry, {530, 70, 300});
      const Rows whole = world.Run(one, {{0, 0, 530, 530}});
      const auto expect_same = [&](const Rows& rows, const char* what) {
        for (const auto& [key, row] : rows) {
          if (key.first != 0) continue;
          EXPECT_EQ(row, whole.at(key)) << what << " position " << key.second;
        }
      };
      for (int begin = 0; begin < 530; begin += 64) {
        const int count = std::min(64, 530 - begin);
        expect_same(world.Run(three, {{0, begin, count, count}}, begin), "chunk of 64");
      }
      for (int position : {0, 1, 63, 64, 255, 256, 257, 511, 512, 529}) {
        expect_same(world.Run(one, {{0, position, 1, 0}}), "decode");
        expect_same(world.Run(three, {{1, 3, 2, 0}, {0, position, 1, 0}, {2, 250, 50, 0}}, 5), "batch");
      }
      expect_same(world.Run(three, {{2, 0, 300, 300}, {0, 128, 402, 402}, {1, 0, 70, 70}}, 9), "long tail");
    }
  }
}

// Control: with the same keys at other positions the segments fall elsewhere, and the bits differ. Otherwise the test
// above could not see a segment that moved.
TEST_P(AttentionTest, SegmentBordersShowInTheBits) {
  Backend backend = BackendOf(GetParam());
  const int64_t dim = 64, length = 300;
  Random random(3);
  const HostTensor q = random.Tensor(DType::kF32, {1, 1, dim});
  const HostTensor keys = random.Tensor(DType::kF32, {length, dim}), values = random.Tensor(DType::kF32, {length, dim});
  const auto run = [&](int64_t shift) {  // keys of value zero and weight e^-40 come first
    const int64_t blocks = (length + shift + kBlockTokens - 1) / kBlockTokens;
    HostTensor k(DType::kF32, {blocks, 1, kBlockTokens, dim}), v = k, out(DType::kF32, {1, dim});
    double norm = 0;
    for (int64_t i = 0; i < dim; ++i) norm += q.Get(i) * q.Get(i);
    for (int64_t p = 0; p < length + shift; ++p) {
      for (int64_t i = 0; i < dim; ++i) {
        k.Set(p * dim + i, p < shift ? static_cast<float>(-320 * q.Get(i) / norm) : keys.Get((p - shift) * dim + i));
        v.Set(p * dim + i, p < shift ? 0.0f : values.Get((p - shift) * dim + i));
      }
    }
    std::vector<int32_t> table(blocks);
    for (int64_t i = 0; i < blocks; ++i) table[i] = static_cast<int32_t>(i);
    const StepRows rows({{0, static_cast<int>(length + shift - 1), 1, 0}}, {table}, {});
    backend.ops->Attention({.out = out, .q = q, .k_cache = k, .v_cache = v, .sequences = rows.view(), .scale = 0.125f});
    return out.Floats();
  };
  const std::vector<float> at_zero = run(0), shifted = run(64);
  ExpectNear(shifted, at_zero, {.absolute = 1e-5}, "shifted");
  EXPECT_NE(shifted, at_zero);
}

TEST_P(AttentionTest, RopeAndNormsEqualReference) {
  Backend backend = BackendOf(GetParam()), reference = MakeReferenceBackend();
  for (DType dtype : kActTypes) {
    for (const Geometry& geometry : {Geometry{4, 2, 64}, Geometry{6, 1, 256, true}, Geometry{3, 3, 10}}) {
      for (int64_t half : {geometry.head_dim / 2, geometry.head_dim / 8 + 1}) {
        for (bool normed : {true, false}) {
          const int64_t num_rows = 7;
          Random random(5);
          std::vector<int32_t> positions, slots;
          for (int i = 0; i < num_rows; ++i) {
            positions.push_back(static_cast<int32_t>(random.Below(200000)));
            slots.push_back((i * 37 + 11) % (3 * kBlockTokens));
          }
          HostTensor inv_freq(DType::kF32, {half});
          for (int64_t i = 0; i < half; ++i) inv_freq.Set(i, std::pow(1e6f, -static_cast<float>(i) / half));
          const HostTensor qkv = random.Tensor(DType::kF32, {num_rows, geometry.width()}, 3);
          const HostTensor q_norm = random.Tensor(DType::kF32, {geometry.head_dim});
          const HostTensor k_norm = random.Tensor(DType::kF32, {geometry.head_dim});
          const auto run = [&](Backend& b) {
            HostTensor cos(DType::kF32, {num_rows, half}), sin = cos;
            b.ops->RopeTable({.cos = cos, .sin = sin, .positions = HostTensor({num_rows}, positions),
                              .inv_freq = inv_freq, .attention_factor = 1.25f});
            HostTensor q(dtype, {num_rows, geometry.heads, geometry.head_dim});
            HostTensor k(dtype, {3, geometry.kv_heads, kBlockTokens, geometry.head_dim}), v = k;
            b.ops->QkNormRope({.q = q, .k_cache = k, .v_cache = v, .qkv = qkv,
                               .q_norm = normed ? ConstTensor(q_norm) : ConstTensor(),
                               .k_norm = normed ? ConstTensor(k_norm) : ConstTensor(), .cos = cos, .sin = sin,
                               .slots = HostTensor({num_rows}, slots), .norm_offset = 1, .eps = 1e-6f,
                               .gated = geometry.gated});
            std::vector<float> all = q.Floats();
            for (const HostTensor* tensor : {&k, &v, &cos, &sin}) {
              const std::vector<float> values = tensor->Floats();
              all.insert(all.end(), values.begin(), values.end());
            }
            return all;
          };
          // Two products of terms below 40 (a norm's weight times 1.25), each some roundings off; then one rounding.
          ExpectNear(run(backend), run(reference), {2.01 * UnitOf(dtype), 40 * 8 * 0x1p-24},
                     GetParam() + " " + NameOf(dtype));
        }
      }
    }
  }
}

}  // namespace
}  // namespace plumbline
