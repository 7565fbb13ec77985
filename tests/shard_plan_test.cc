// The cut of every model over every legal mesh: nothing is lost, nothing is held twice without
// need, and what a rank holds fits together.
#include "parallel/shard_plan.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "parallel/json_reader.h"

namespace plumbline {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr const char* kModels[] = {
    "qwen2_tied/config",    "qwen3/config",          "qwen35_text/config", "qwen35_vl/config",
    "llama3/config",        "mixtral/config",        "qwen3_moe/config",   "configs/qwen3.6-27b",
    "configs/qwen2.5-7b",   "configs/qwen3-8b",      "configs/qwen3-0.6b", "configs/qwen3.5-0.8b",
    "configs/mixtral-8x7b", "configs/qwen3-30b-a3b",
};

ModelConfig Config(const std::string& name) {
  const std::string path = absl::StrCat(PLUMBLINE_SOURCE_DIR, "/tests/golden/", name, ".json");
  return ParseModelConfig(ReadTextFile(path, 1 << 20).value()).value();
}

using Slicer = std::function<TensorSlice(const ShardPlan&, const std::string& name, int rank)>;

TensorSlice TrueSlice(const ShardPlan& plan, const std::string& name, int rank) {
  return plan.SliceOf(name, rank);
}

bool IsReplicated(const std::string& name) {
  return absl::EndsWith(name, "norm.weight") || absl::EndsWith(name, "mlp.gate.weight") ||
         absl::EndsWith(name, "block_sparse_moe.gate.weight");
}

// How many ranks of one stage hold each element, from the architecture's rules alone.
int64_t ExpectedCopies(const ModelConfig& config, const std::string& name, int64_t tp) {
  if (IsReplicated(name)) return tp;
  const bool kv = absl::StrContains(name, ".k_proj.") || absl::StrContains(name, ".v_proj.");
  return kv ? std::max<int64_t>(1, tp / config.attention.num_kv_heads) : 1;
}

struct Rectangle {
  int64_t first_row, last_row, first_column, last_column;
};

// "" when every element lies in exactly `copies` rectangles.
std::string CoverageProblem(const TensorPlan& tensor, const std::vector<Rectangle>& held,
                            int64_t copies) {
  std::set<int64_t> rows = {0, tensor.rows}, columns = {0, tensor.columns};
  for (const Rectangle& r : held) {
    if (r.first_row < 0 || r.last_row > tensor.rows || r.first_column < 0 ||
        r.last_column > tensor.columns) {
      return "a slice lies outside the tensor";
    }
    rows.insert({r.first_row, r.last_row});
    columns.insert({r.first_column, r.last_column});
  }
  for (auto row = rows.begin(); std::next(row) != rows.end(); ++row) {
    for (auto column = columns.begin(); std::next(column) != columns.end(); ++column) {
      const int64_t count = std::count_if(held.begin(), held.end(), [&](const Rectangle& r) {
        return r.first_row <= *row && *row < r.last_row && r.first_column <= *column &&
               *column < r.last_column;
      });
      if (count != copies) {
        return absl::StrCat("row ", *row, " column ", *column, " is held ", count, " times, not ",
                            copies);
      }
    }
  }
  return "";
}

std::string ModelCoverageProblem(const ModelConfig& config, const ShardPlan& plan,
                                 const Slicer& slice_of) {
  const Mesh mesh = plan.mesh();
  for (const TensorPlan& tensor : plan.tensors()) {
    std::vector<Rectangle> held;
    std::set<int> stages;
    for (int rank = 0; rank < mesh.size(); ++rank) {
      const TensorSlice slice = slice_of(plan, tensor.name, rank);
      for (const RowRange& rows : slice.rows) {
        stages.insert(mesh.StageOf(rank));
        held.push_back({rows.first, rows.first + rows.count, slice.first_column,
                        slice.first_column + slice.num_columns});
      }
    }
    const bool twice =
        config.tied_head && mesh.pp > 1 && tensor.name == "model.embed_tokens.weight";
    if (stages.size() != (twice ? 2 : 1))
      return absl::StrCat(tensor.name, " lies on ", stages.size(), " stages");
    const int64_t copies = ExpectedCopies(config, tensor.name, mesh.tp) * (twice ? 2 : 1);
    const std::string problem = CoverageProblem(tensor, held, copies);
    if (!problem.empty()) return absl::StrCat(tensor.name, ": ", problem);
  }
  return "";
}

struct Run {
  int64_t first = 0, count = 0;
  bool operator==(const Run&) const = default;
};

// The rank's rows of a section in units; a rank holds one run of each section.
Run Units(const TensorSlice& slice, size_t section, int64_t first_row, int64_t rows_per_unit) {
  const RowRange& rows = slice.rows.at(section);
  return {(rows.first - first_row) / rows_per_unit, rows.count / rows_per_unit};
}
Run Columns(const TensorSlice& slice, int64_t per_unit) {
  return {slice.first_column / per_unit, slice.num_columns / per_unit};
}
// Heads of the shared side that `heads` need when `group` of them share one.
Run Shared(Run heads, int64_t group) {
  const int64_t first = heads.first / group;
  return {first, (heads.first + heads.count - 1) / group - first + 1};
}

// "" when a rank's pieces of a layer belong together: its query heads have their KV heads, its
// value heads their key heads, and a row-parallel linear's columns are what its own rows before it
// produce.
std::string LayerProblem(const ModelConfig& config, const ShardPlan& plan, int64_t index, int rank,
                         const Slicer& slice_of) {
  const std::string layer = absl::StrCat("model.layers.", index, ".");
  const auto slice = [&](const std::string& name) { return slice_of(plan, layer + name, rank); };
  if (config.layers[index].mixer == MixerKind::kAttention) {
    const AttentionConfig& a = config.attention;
    const Run q =
        Units(slice("self_attn.q_proj.weight"), 0, 0, a.head_dim * (a.output_gate ? 2 : 1));
    const Run needed = Shared(q, a.num_heads / a.num_kv_heads);
    for (const char* name : {"self_attn.k_proj.weight", "self_attn.v_proj.weight"}) {
      if (Units(slice(name), 0, 0, a.head_dim) != needed)
        return absl::StrCat(layer, name, ": not the heads q needs");
    }
    if (Columns(slice("self_attn.o_proj.weight"), a.head_dim) != q)
      return layer + "o_proj: not the heads of q";
  } else {
    const GatedDeltaNetConfig& net = config.delta_net;
    const TensorSlice qkv = slice("linear_attn.in_proj_qkv.weight"),
                      conv = slice("linear_attn.conv1d.weight");
    if (qkv.rows.size() != 3 || qkv.rows != conv.rows)
      return layer + "in_proj_qkv: not q, k, v as conv1d";
    const int64_t keys = net.num_key_heads * net.key_dim;
    const Run q = Units(qkv, 0, 0, net.key_dim), k = Units(qkv, 1, keys, net.key_dim);
    const Run v = Units(qkv, 2, 2 * keys, net.value_dim);
    if (q != k || k != Shared(v, net.num_value_heads / net.num_key_heads))
      return layer + "in_proj_qkv: heads apart";
    if (Units(slice("linear_attn.in_proj_z.weight"), 0, 0, net.value_dim) != v)
      return layer + "in_proj_z";
    for (const char* name : {"in_proj_b.weight", "in_proj_a.weight", "A_log", "dt_bias"}) {
      if (Units(slice(absl::StrCat("linear_attn.", name)), 0, 0, 1) != v)
        return absl::StrCat(layer, name);
    }
    if (Columns(slice("linear_attn.out_proj.weight"), net.value_dim) != v)
      return layer + "out_proj";
  }
  const bool mixtral = config.model_type == "mixtral";
  const std::string mlp = !config.layers[index].moe ? "mlp."
                          : mixtral                 ? "block_sparse_moe.experts.1."
                                                    : "mlp.experts.1.";
  const Run gate = Units(slice(mlp + (mixtral ? "w1" : "gate_proj") + ".weight"), 0, 0, 1);
  const Run up = Units(slice(mlp + (mixtral ? "w3" : "up_proj") + ".weight"), 0, 0, 1);
  const Run down = Columns(slice(mlp + (mixtral ? "w2" : "down_proj") + ".weight"), 1);
  return gate == up && up == down ? "" : layer + "mlp: gate, up and down differ";
}

std::string ModelProblem(const ModelConfig& config, const ShardPlan& plan, const Slicer& slice_of) {
  const std::string coverage = ModelCoverageProblem(config, plan, slice_of);
  if (!coverage.empty()) return coverage;
  for (int rank = 0; rank < plan.mesh().size(); ++rank) {
    const StageRange layers = plan.LayersOf(plan.mesh().StageOf(rank));
    for (int64_t i = layers.first; i < layers.last; ++i) {
      const std::string problem = LayerProblem(config, plan, i, rank, slice_of);
      if (!problem.empty()) return absl::StrCat("rank ", rank, ": ", problem);
    }
  }
  return "";
}

TEST(ShardPlanTest, EveryLegalMeshHoldsEveryElementTheRightNumberOfTimes) {
  for (const char* name : kModels) {
    const ModelConfig config = Config(name);
    for (int tp : LegalTpSizes(config)) {
      for (int pp : {1, 2, 3, 4, 8}) {
        if (pp > config.num_layers()) continue;
        const absl::StatusOr<ShardPlan> plan = ShardPlan::Make(config, {.tp = tp, .pp = pp});
        ASSERT_TRUE(plan.ok()) << plan.status();
        EXPECT_EQ(ModelProblem(config, *plan, TrueSlice), "")
            << name << " tp " << tp << " pp " << pp;
      }
    }
  }
}

TEST(ShardPlanTest, TheChecksAboveSeeWrongCuts) {
  const ModelConfig config = Config("configs/qwen3.6-27b");
  const ShardPlan plan = ShardPlan::Make(config, {.tp = 4, .pp = 2}).value();
  // q | k | v cut as one block: covers everything once, and is the classic mistake.
  const Slicer one_block = [](const ShardPlan& plan, const std::string& name, int rank) {
    TensorSlice slice = plan.SliceOf(name, rank);
    if (slice.rows.size() != 3) return slice;
    const int64_t rows = plan.Find(name).rows / plan.mesh().tp,
                  first = plan.mesh().TpIndexOf(rank) * rows;
    slice.rows = {
        {first, rows / 2}, {first + rows / 2, rows / 4}, {first + rows * 3 / 4, rows / 4}};
    return slice;
  };
  EXPECT_EQ(ModelCoverageProblem(config, plan, one_block), "");
  EXPECT_THAT(ModelProblem(config, plan, one_block), HasSubstr("in_proj_qkv"));
  const Slicer one_row_short = [](const ShardPlan& plan, const std::string& name, int rank) {
    TensorSlice slice = plan.SliceOf(name, rank);
    if (absl::EndsWith(name, "20.mlp.up_proj.weight") && rank == 2) --slice.rows[0].count;
    return slice;
  };
  EXPECT_THAT(ModelCoverageProblem(config, plan, one_row_short),
              HasSubstr("20.mlp.up_proj.weight"));
  const Slicer wrong_columns = [](const ShardPlan& plan, const std::string& name, int rank) {
    return plan.SliceOf(name, absl::EndsWith(name, "o_proj.weight") ? rank ^ 1 : rank);
  };
  EXPECT_EQ(ModelCoverageProblem(config, plan, wrong_columns), "");
  EXPECT_THAT(ModelProblem(config, plan, wrong_columns), HasSubstr("o_proj"));
}

TEST(ShardPlanTest, TensorsOfQwen36AreThoseOfItsCheckpoint) {
  const ModelConfig config = Config("configs/qwen3.6-27b");
  const ShardPlan plan = ShardPlan::Make(config, {.tp = 8, .pp = 1}).value();
  EXPECT_EQ(plan.tensors().size(), 851);
  const auto shape = [&](const char* name) {
    return plan.Find(absl::StrCat("model.layers.", name)).shape;
  };
  EXPECT_THAT(shape("0.linear_attn.in_proj_qkv.weight"), ElementsAre(10240, 5120));
  EXPECT_THAT(shape("0.linear_attn.conv1d.weight"), ElementsAre(10240, 1, 4));
  EXPECT_THAT(shape("0.linear_attn.A_log"), ElementsAre(48));
  EXPECT_THAT(shape("3.self_attn.q_proj.weight"), ElementsAre(12288, 5120));
  EXPECT_THAT(shape("3.self_attn.k_proj.weight"), ElementsAre(1024, 5120));
  EXPECT_THAT(shape("3.self_attn.o_proj.weight"), ElementsAre(5120, 6144));
  // Rank 5 of 8: q heads 15..17 with their gates, KV head 2 (shared with rank 4), GDN k heads 10,
  // 11 and v heads 30..35.
  const auto rows = [&](const char* name) {
    return plan.SliceOf(absl::StrCat("model.layers.", name), 5).rows;
  };
  EXPECT_THAT(rows("3.self_attn.q_proj.weight"), ElementsAre(RowRange{15 * 512, 3 * 512}));
  EXPECT_THAT(rows("3.self_attn.v_proj.weight"), ElementsAre(RowRange{2 * 256, 256}));
  EXPECT_THAT(rows("0.linear_attn.in_proj_qkv.weight"),
              ElementsAre(RowRange{10 * 128, 256}, RowRange{2048 + 10 * 128, 256},
                          RowRange{4096 + 30 * 128, 768}));
  EXPECT_THAT(plan.SliceOf("lm_head.weight", 5).rows, ElementsAre(RowRange{5 * 31040, 31040}));
  EXPECT_EQ(plan.LocalHeads(24), 3);
  EXPECT_EQ(plan.LocalKvHeads(4), 1);
}

TEST(ShardPlanTest, OddVocabulariesAreCutInLeaves) {
  ModelConfig config = Config("qwen3/config");
  config.vocab = 8 * 40 + 3;  // leaves of 41 rows; the last has 36
  const ShardPlan plan = ShardPlan::Make(config, {.tp = 8, .pp = 1}).value();
  EXPECT_EQ(plan.VocabLeafRows(), 41);
  EXPECT_THAT(plan.SliceOf("lm_head.weight", 7).rows, ElementsAre(RowRange{287, 36}));
  config.vocab = 9;  // leaves of 2 rows: five hold something, three nothing
  const ShardPlan tiny = ShardPlan::Make(config, {.tp = 8, .pp = 1}).value();
  EXPECT_EQ(ModelCoverageProblem(config, tiny, TrueSlice), "");
  EXPECT_EQ(tiny.SliceOf("lm_head.weight", 4).num_rows(), 1);
  EXPECT_EQ(tiny.SliceOf("lm_head.weight", 7).num_rows(), 0);
}

double SumOfSquares(const ModelConfig& config, const std::vector<int64_t>& ends) {
  const ShardPlan whole = ShardPlan::Make(config, {}).value();
  std::vector<double> sizes(ends.size(), 0);
  for (const TensorPlan& tensor : whole.tensors()) {
    const double size = static_cast<double>(tensor.rows * tensor.columns);
    int64_t layer = 0;
    if (sscanf(tensor.name.c_str(), "model.layers.%ld.", &layer) == 1) {
      sizes[std::upper_bound(ends.begin(), ends.end(), layer) - ends.begin()] += size;
    } else if (tensor.name == "lm_head.weight") {
      sizes.back() += size;
    } else if (tensor.name == "model.embed_tokens.weight") {
      sizes.front() += size;
      if (config.tied_head && ends.size() > 1) sizes.back() += size;
    }
  }
  double sum = 0;
  for (double size : sizes) sum += size * size;
  return sum;
}

TEST(ShardPlanTest, StagesAreAsEvenAsACutBetweenLayersCanBe) {
  for (const char* name :
       {"qwen2_tied/config", "qwen35_vl/config", "qwen3_moe/config", "configs/qwen3-0.6b"}) {
    const ModelConfig config = Config(name);
    const int64_t n = config.num_layers();
    double best = std::numeric_limits<double>::infinity();  // of all cuts in three stages
    for (int64_t a = 1; a < n - 1; ++a) {
      for (int64_t b = a + 1; b < n; ++b) best = std::min(best, SumOfSquares(config, {a, b, n}));
    }
    const ShardPlan plan = ShardPlan::Make(config, {.tp = 1, .pp = 3}).value();
    EXPECT_EQ(plan.LayersOf(0).first, 0);
    EXPECT_EQ(plan.LayersOf(1).first, plan.LayersOf(0).last);
    EXPECT_EQ(plan.LayersOf(2).first, plan.LayersOf(1).last);
    EXPECT_EQ(plan.LayersOf(2).last, n);
    EXPECT_NEAR(SumOfSquares(config, {plan.LayersOf(0).last, plan.LayersOf(1).last, n}) / best, 1,
                1e-6)
        << name;
  }
}

TEST(ShardPlanTest, MeshesThatDoNotFitAreRefusedWithTheSizesThatDo) {
  EXPECT_THAT(LegalTpSizes(Config("configs/qwen3.6-27b")), ElementsAre(1, 2, 4, 8));
  EXPECT_THAT(LegalTpSizes(Config("configs/qwen2.5-7b")), ElementsAre(1, 2, 4));  // 28 heads
  EXPECT_THAT(LegalTpSizes(Config("configs/mixtral-8x7b")), ElementsAre(1, 2, 4, 8));
  const auto message = [](const char* name, Mesh mesh) {
    const absl::Status status = ShardPlan::Make(Config(name), mesh).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_THAT(message("configs/qwen2.5-7b", {.tp = 8}), HasSubstr("28 query heads"));
  EXPECT_THAT(message("configs/qwen2.5-7b", {.tp = 8}), HasSubstr("1, 2, 4"));
  EXPECT_THAT(message("configs/qwen3.6-27b", {.tp = 3}), HasSubstr("1, 2, 4, 8"));
  EXPECT_THAT(message("configs/qwen3.6-27b", {.tp = 0}), HasSubstr("1, 2, 4, 8"));
  EXPECT_THAT(message("configs/qwen3.6-27b", {.pp = 65}), HasSubstr("1 to 64"));
  EXPECT_THAT(message("configs/qwen3.6-27b", {.pp = 0}), HasSubstr("1 to 64"));
  ModelConfig odd_width = Config("qwen3/config");
  for (LayerConfig& layer : odd_width.layers)
    layer.ffn = 164;  // divisible by 4, but not into 8 leaves
  EXPECT_THAT(LegalTpSizes(odd_width), ElementsAre(1));
}

}  // namespace
}  // namespace plumbline
