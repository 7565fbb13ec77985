// ShardPlan: the table checkpoint tensor -> stage, split, sections. A pure function of (ModelConfig, Mesh): which bytes of
// which tensor every rank holds. Names are canonical: "model.layers.3.mlp.up_proj.weight", "lm_head.weight"; a loader
// maps a file's prefixes onto them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "parallel/mesh.h"
#include "parallel/model_config.h"

namespace plumbline {

enum class Split : uint8_t {
  kReplicated,  // every rank of the stage holds all of it
  kRows,        // rows cut over TP, each section separately (column-parallel linear)
  kColumns,     // columns cut over TP (row-parallel linear)
  kVocab,       // rows cut in kNumLeaves leaves of ceil(V / kNumLeaves), ranks own runs of leaves
};

// A run of rows that is cut on its own (q | k | v of in_proj_qkv). Units (heads) are dealt out whole. With fewer units
// than ranks, units are replicated: rank r holds unit r * num_units / tp.
struct Section {
  int64_t first_row = 0;
  int64_t num_units = 0;
  int64_t rows_per_unit = 0;
};

struct TensorPlan {
  std::string name;
  int64_t rows = 0;
  int64_t columns = 1;     // product of the other dimensions
  std::vector<int64_t> shape;  // as in the checkpoint
  int first_stage = 0;     // holders: stages first_stage and, for a tied embedding, also last_stage
  int last_stage = 0;
  Split split = Split::kReplicated;
  std::vector<Section> sections;  // of kRows
  bool kept_f32 = false;   // held as f32 in memory whatever the file says (norms, A_log, dt_bias, biases, conv)
};

struct RowRange {
  int64_t first = 0;
  int64_t count = 0;
  bool operator==(const RowRange&) const = default;
};

// This rank's part of one tensor: row ranges in the order they are laid out in the rank's memory, and one column range.
struct TensorSlice {
  std::vector<RowRange> rows;
  int64_t first_column = 0;
  int64_t num_columns = 0;
  int64_t num_rows() const;
};

struct StageRange {  // layers [first, last)
  int64_t first = 0;
  int64_t last = 0;
};

class ShardPlan {
 public:
  // INVALID_ARGUMENT when the mesh does not fit the model; the message lists the sizes that do.
  static absl::StatusOr<ShardPlan> Make(const ModelConfig& config, Mesh mesh);

  const Mesh& mesh() const { return mesh_; }
  const std::vector<TensorPlan>& tensors() const { return tensors_; }
  StageRange LayersOf(int stage) const { return stages_[stage]; }
  bool Holds(const TensorPlan& tensor, int rank) const;
  // REQUIRES: the tensor exists. The slice is empty when the rank does not hold it.
  TensorSlice SliceOf(const std::string& name, int rank) const;
  const TensorPlan& Find(const std::string& name) const;

  // Local sizes that follow from the cut.
  int64_t LocalHeads(int64_t heads) const { return heads / mesh_.tp; }
  int64_t LocalKvHeads(int64_t kv_heads) const { return kv_heads < mesh_.tp ? 1 : kv_heads / mesh_.tp; }
  int64_t VocabLeafRows() const { return vocab_leaf_rows_; }  // ceil(V / kNumLeaves)

 private:
  Mesh mesh_;
  int64_t vocab_leaf_rows_ = 0;
  std::vector<StageRange> stages_;
  std::vector<TensorPlan> tensors_;
  absl::flat_hash_map<std::string, size_t> index_;
};

// TP sizes of {1, 2, 4, 8} that the model's heads and widths allow.
std::vector<int> LegalTpSizes(const ModelConfig& config);

}  // namespace plumbline
