#include "parallel/shard_plan.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/check.h"
#include "kernels/ops.h"

namespace plumbline {
namespace {

// Builds the rows of the table; stage numbers are filled in once the layers' bytes are known.
class TableBuilder {
 public:
  explicit TableBuilder(std::vector<TensorPlan>& tensors) : tensors_(tensors) {}

  void set_stages(int first, int last) { first_stage_ = first, last_stage_ = last; }

  void Vocabulary(const std::string& name, int64_t rows, int64_t columns) {
    Add({.name = name,
         .rows = rows,
         .columns = columns,
         .shape = {rows, columns},
         .split = Split::kVocab});
  }
  void Vector(const std::string& name, int64_t rows) {  // a norm's weight
    Add({.name = name, .rows = rows, .shape = {rows}, .kept_f32 = true});
  }
  void Matrix(const std::string& name, int64_t rows, int64_t columns) {  // the same on every rank
    Add({.name = name, .rows = rows, .columns = columns, .shape = {rows, columns}});
  }
  void SplitVector(const std::string& name, Section section) {
    const int64_t rows = section.num_units * section.rows_per_unit;
    Add({.name = name,
         .rows = rows,
         .shape = {rows},
         .split = Split::kRows,
         .sections = {section},
         .kept_f32 = true});
  }
  void SplitRows(const std::string& name, std::vector<Section> sections, int64_t columns) {
    const int64_t rows = RowsOf(sections);
    Add({.name = name,
         .rows = rows,
         .columns = columns,
         .shape = {rows, columns},
         .split = Split::kRows,
         .sections = std::move(sections)});
  }
  void SplitConvolution(const std::string& name, std::vector<Section> sections, int64_t width) {
    const int64_t rows = RowsOf(sections);
    Add({.name = name,
         .rows = rows,
         .columns = width,
         .shape = {rows, 1, width},
         .split = Split::kRows,
         .sections = std::move(sections),
         .kept_f32 = true});
  }
  void SplitColumns(const std::string& name, int64_t rows, int64_t columns) {
    Add({.name = name,
         .rows = rows,
         .columns = columns,
         .shape = {rows, columns},
         .split = Split::kColumns});
  }

 private:
  static int64_t RowsOf(const std::vector<Section>& sections) {
    return sections.back().first_row + sections.back().num_units * sections.back().rows_per_unit;
  }
  void Add(TensorPlan tensor) {
    tensor.first_stage = first_stage_;
    tensor.last_stage = last_stage_;
    tensors_.push_back(std::move(tensor));
  }

  std::vector<TensorPlan>& tensors_;
  int first_stage_ = 0;
  int last_stage_ = 0;
};

Section Heads(int64_t num_heads, int64_t rows_per_head) { return {0, num_heads, rows_per_head}; }

void AddAttention(const ModelConfig& config, const std::string& layer, TableBuilder& table) {
  const AttentionConfig& attention = config.attention;
  const std::string prefix = layer + "self_attn.";
  // Query and gate of a head are neighbours in q_proj, so they stay on one rank.
  const Section q =
      Heads(attention.num_heads, attention.head_dim * (attention.output_gate ? 2 : 1));
  const Section kv = Heads(attention.num_kv_heads, attention.head_dim);
  table.SplitRows(prefix + "q_proj.weight", {q}, config.hidden);
  table.SplitRows(prefix + "k_proj.weight", {kv}, config.hidden);
  table.SplitRows(prefix + "v_proj.weight", {kv}, config.hidden);
  if (attention.qkv_bias) {
    table.SplitVector(prefix + "q_proj.bias", q);
    table.SplitVector(prefix + "k_proj.bias", kv);
    table.SplitVector(prefix + "v_proj.bias", kv);
  }
  if (attention.qk_norm) {
    table.Vector(prefix + "q_norm.weight", attention.head_dim);
    table.Vector(prefix + "k_norm.weight", attention.head_dim);
  }
  table.SplitColumns(prefix + "o_proj.weight", config.hidden,
                     attention.num_heads * attention.head_dim);
}

void AddDeltaNet(const ModelConfig& config, const std::string& layer, TableBuilder& table) {
  const GatedDeltaNetConfig& net = config.delta_net;
  const std::string prefix = layer + "linear_attn.";
  const int64_t key_rows = net.num_key_heads * net.key_dim;
  // q | k | v are cut one by one: a cut of the whole would give one rank all queries.
  const std::vector<Section> qkv = {{0, net.num_key_heads, net.key_dim},
                                    {key_rows, net.num_key_heads, net.key_dim},
                                    {2 * key_rows, net.num_value_heads, net.value_dim}};
  const Section per_head = Heads(net.num_value_heads, 1);
  table.SplitRows(prefix + "in_proj_qkv.weight", qkv, config.hidden);
  table.SplitRows(prefix + "in_proj_z.weight", {Heads(net.num_value_heads, net.value_dim)},
                  config.hidden);
  table.SplitRows(prefix + "in_proj_b.weight", {per_head}, config.hidden);
  table.SplitRows(prefix + "in_proj_a.weight", {per_head}, config.hidden);
  table.SplitConvolution(prefix + "conv1d.weight", qkv, net.conv_width);
  table.SplitVector(prefix + "A_log", per_head);
  table.SplitVector(prefix + "dt_bias", per_head);
  table.Vector(prefix + "norm.weight", net.value_dim);
  table.SplitColumns(prefix + "out_proj.weight", config.hidden,
                     net.num_value_heads * net.value_dim);
}

struct SwiGluNames {
  const char* gate;
  const char* up;
  const char* down;
};

void AddSwiGlu(const std::string& prefix, SwiGluNames names, int64_t hidden, int64_t ffn,
               TableBuilder& table) {
  table.SplitRows(absl::StrCat(prefix, names.gate, ".weight"), {Heads(ffn, 1)}, hidden);
  table.SplitRows(absl::StrCat(prefix, names.up, ".weight"), {Heads(ffn, 1)}, hidden);
  table.SplitColumns(absl::StrCat(prefix, names.down, ".weight"), hidden, ffn);
}

void AddFeedForward(const ModelConfig& config, int64_t index, const std::string& layer,
                    TableBuilder& table) {
  const LayerConfig& shape = config.layers[index];
  constexpr SwiGluNames kUsual = {"gate_proj", "up_proj", "down_proj"};
  constexpr SwiGluNames kMixtral = {"w1", "w3", "w2"};
  if (!shape.moe) {
    AddSwiGlu(layer + "mlp.", kUsual, config.hidden, shape.ffn, table);
    return;
  }
  const bool mixtral = config.model_type == "mixtral";
  const std::string prefix = layer + (mixtral ? "block_sparse_moe." : "mlp.");
  table.Matrix(prefix + "gate.weight", config.moe.num_experts, config.hidden);
  for (int64_t e = 0; e < config.moe.num_experts; ++e) {
    AddSwiGlu(absl::StrCat(prefix, "experts.", e, "."), mixtral ? kMixtral : kUsual, config.hidden,
              shape.ffn, table);
  }
}

void AddLayer(const ModelConfig& config, int64_t index, TableBuilder& table) {
  const std::string layer = absl::StrCat("model.layers.", index, ".");
  table.Vector(layer + "input_layernorm.weight", config.hidden);
  if (config.layers[index].mixer == MixerKind::kAttention) {
    AddAttention(config, layer, table);
  } else {
    AddDeltaNet(config, layer, table);
  }
  table.Vector(layer + "post_attention_layernorm.weight", config.hidden);
  AddFeedForward(config, index, layer, table);
}

double LayerElements(const ModelConfig& config, int64_t index) {
  std::vector<TensorPlan> tensors;
  TableBuilder table(tensors);
  AddLayer(config, index, table);
  double sum = 0;
  for (const TensorPlan& tensor : tensors) sum += static_cast<double>(tensor.rows * tensor.columns);
  return sum;
}

// Cuts the layers where the variance of the stages' sizes, embedding and head included, is least;
// of equal cuts the one that ends stages earliest.
std::vector<StageRange> CutStages(const ModelConfig& config, int num_stages) {
  const int64_t n = config.num_layers();
  const double vocabulary = static_cast<double>(config.vocab * config.hidden);
  std::vector<double> before(n + 1, 0);  // elements of the layers before
  for (int64_t i = 0; i < n; ++i) before[i + 1] = before[i] + LayerElements(config, i);
  const auto stage_size = [&](int stage, int64_t first, int64_t last) {
    const bool at_start = stage == 0, at_end = stage == num_stages - 1;
    const bool one_copy = config.tied_head && at_start && at_end;
    return before[last] - before[first] + vocabulary * (one_copy ? 1 : at_start + at_end);
  };
  // best[s][i]: least sum of squares of stages [0, s) over layers [0, i). The total is fixed, so it
  // is the variance's.
  constexpr double kNever = std::numeric_limits<double>::infinity();
  std::vector<std::vector<double>> best(num_stages + 1, std::vector<double>(n + 1, kNever));
  std::vector<std::vector<int64_t>> cut(num_stages + 1, std::vector<int64_t>(n + 1, 0));
  best[0][0] = 0;
  for (int s = 1; s <= num_stages; ++s) {
    for (int64_t last = s; last <= n; ++last) {
      for (int64_t first = s - 1; first < last; ++first) {
        const double size = stage_size(s - 1, first, last);
        const double sum = best[s - 1][first] + size * size;
        if (sum < best[s][last]) best[s][last] = sum, cut[s][last] = first;
      }
    }
  }
  std::vector<StageRange> stages(num_stages);
  for (int64_t s = num_stages, last = n; s > 0; --s) {
    stages[s - 1] = {cut[s][last], last};
    last = cut[s][last];
  }
  return stages;
}

// Why tp does not fit, or "".
std::string Obstacle(const ModelConfig& config, int tp) {
  const auto uneven = [&](int64_t count, const char* what) {
    return count % tp == 0
               ? ""
               : absl::StrCat(count, " ", what, " cannot be dealt out to ", tp, " ranks");
  };
  const auto leafless = [&](int64_t k, const char* what) {
    return k % kNumLeaves == 0 && k % tp == 0 ? ""
                                              : absl::StrCat("the ", k, " columns of ", what,
                                                             " are not a multiple of ", kNumLeaves);
  };
  std::vector<std::string> obstacles;
  if (config.num_layers_of(MixerKind::kAttention) > 0) {
    const AttentionConfig& attention = config.attention;
    obstacles.push_back(uneven(attention.num_heads, "query heads"));
    if (attention.num_kv_heads % tp != 0 && tp % attention.num_kv_heads != 0) {
      obstacles.push_back(
          absl::StrCat(attention.num_kv_heads, " KV heads neither divide nor are divided by ", tp));
    }
    obstacles.push_back(leafless(attention.num_heads * attention.head_dim, "o_proj"));
  }
  if (config.num_layers_of(MixerKind::kGatedDeltaNet) > 0) {
    const GatedDeltaNetConfig& net = config.delta_net;
    obstacles.push_back(uneven(net.num_key_heads, "linear key heads"));
    obstacles.push_back(uneven(net.num_value_heads, "linear value heads"));
    obstacles.push_back(leafless(net.num_value_heads * net.value_dim, "out_proj"));
  }
  for (const LayerConfig& layer : config.layers)
    obstacles.push_back(leafless(layer.ffn, "down_proj"));
  for (const std::string& obstacle : obstacles) {
    if (tp > 1 && !obstacle.empty()) return obstacle;
  }
  return "";
}

}  // namespace

int64_t TensorSlice::num_rows() const {
  int64_t sum = 0;
  for (const RowRange& range : rows) sum += range.count;
  return sum;
}

std::vector<int> LegalTpSizes(const ModelConfig& config) {
  std::vector<int> sizes;
  for (int tp : {1, 2, 4, 8}) {
    if (Obstacle(config, tp).empty()) sizes.push_back(tp);
  }
  return sizes;
}

absl::StatusOr<ShardPlan> ShardPlan::Make(const ModelConfig& config, Mesh mesh) {
  const std::vector<int> sizes = LegalTpSizes(config);
  if (std::find(sizes.begin(), sizes.end(), mesh.tp) == sizes.end()) {
    const bool known = mesh.tp == 2 || mesh.tp == 4 || mesh.tp == 8;
    return absl::InvalidArgumentError(
        absl::StrCat("tensor-parallel size ", mesh.tp, " does not fit this ", config.model_type,
                     " model", known ? ": " : "", known ? Obstacle(config, mesh.tp) : "",
                     "; sizes that fit: ", absl::StrJoin(sizes, ", ")));
  }
  if (mesh.pp < 1 || mesh.pp > config.num_layers()) {
    return absl::InvalidArgumentError(
        absl::StrCat(mesh.pp, " pipeline stages do not fit a model of ", config.num_layers(),
                     " layers; 1 to ", config.num_layers(), " do"));
  }
  ShardPlan plan;
  plan.mesh_ = mesh;
  plan.vocab_leaf_rows_ = (config.vocab + kNumLeaves - 1) / kNumLeaves;
  plan.stages_ = CutStages(config, mesh.pp);

  TableBuilder table(plan.tensors_);
  const int last_stage = mesh.pp - 1;
  table.set_stages(0, config.tied_head ? last_stage : 0);
  table.Vocabulary("model.embed_tokens.weight", config.vocab, config.hidden);
  for (int stage = 0; stage < mesh.pp; ++stage) {
    table.set_stages(stage, stage);
    for (int64_t i = plan.stages_[stage].first; i < plan.stages_[stage].last; ++i)
      AddLayer(config, i, table);
  }
  table.Vector("model.norm.weight", config.hidden);
  if (!config.tied_head) table.Vocabulary("lm_head.weight", config.vocab, config.hidden);
  for (size_t i = 0; i < plan.tensors_.size(); ++i) plan.index_[plan.tensors_[i].name] = i;
  return plan;
}

const TensorPlan& ShardPlan::Find(const std::string& name) const {
  const auto it = index_.find(name);
  PL_CHECK_MSG(it != index_.end(), name.c_str());
  return tensors_[it->second];
}

bool ShardPlan::Holds(const TensorPlan& tensor, int rank) const {
  const int stage = mesh_.StageOf(rank);
  return stage == tensor.first_stage || stage == tensor.last_stage;
}

TensorSlice ShardPlan::SliceOf(const std::string& name, int rank) const {
  PL_CHECK(rank >= 0 && rank < mesh_.size());
  const TensorPlan& tensor = Find(name);
  if (!Holds(tensor, rank)) return {};
  const int64_t tp = mesh_.tp, t = mesh_.TpIndexOf(rank);
  TensorSlice slice{.first_column = 0, .num_columns = tensor.columns};
  switch (tensor.split) {
    case Split::kReplicated:
      slice.rows = {{0, tensor.rows}};
      break;
    case Split::kRows:
      for (const Section& section : tensor.sections) {
        const int64_t first_unit = t * section.num_units / tp;
        const int64_t num_units = std::max<int64_t>(section.num_units / tp, 1);
        slice.rows.push_back({section.first_row + first_unit * section.rows_per_unit,
                              num_units * section.rows_per_unit});
      }
      break;
    case Split::kColumns:
      slice.rows = {{0, tensor.rows}};
      slice.num_columns = tensor.columns / tp;
      slice.first_column = t * slice.num_columns;
      break;
    case Split::kVocab: {
      const int64_t leaves = kNumLeaves / tp;
      const int64_t first = std::min(t * leaves * vocab_leaf_rows_, tensor.rows);
      const int64_t last = std::min((t + 1) * leaves * vocab_leaf_rows_, tensor.rows);
      slice.rows = {{first, last - first}};
      break;
    }
  }
  return slice;
}

}  // namespace plumbline
