// WeightLoader: turns a rank's slices of the checkpoint into what layers hold: packed linears, f32 vectors, the
// embedding table. Pieces are read and packed a few megabytes at a time, so that a rank never holds its weights twice.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/device.h"
#include "kernels/ops.h"
#include "parallel/shard_plan.h"
#include "worker/weight_source.h"

namespace plumbline {

// A linear's weight on the device.
struct PackedLinear {
  LinearShape shape;
  Buffer memory;

  ConstTensor packed() const {
    return memory.View(DType::kU8, {static_cast<int64_t>(memory.num_bytes())});
  }
};

class WeightLoader {
 public:
  struct Options {
    Device* device = nullptr;
    Ops* ops = nullptr;
    WeightSource* source = nullptr;
    const ShardPlan* plan = nullptr;
    int rank = 0;
    DType act = DType::kBf16;                                   // the weights' type in memory
    std::function<void(int64_t bytes_done)> on_progress;        // checkpoint bytes; may be empty
  };
  explicit WeightLoader(Options options) : options_(std::move(options)) {}

  // The rows of the named tensors below each other: q|k|v and the like. A tensor cut by columns is a row-parallel linear
  // and gets its leaves. RESOURCE_EXHAUSTED when memory runs out; otherwise the source's errors.
  absl::StatusOr<PackedLinear> Linear(const std::vector<std::string>& names);
  // gate above up, for GatedLinear.
  absl::StatusOr<PackedLinear> Gated(const std::string& gate, const std::string& up);
  // The vocabulary rows of this rank, padded with zero rows to whole leaves.
  absl::StatusOr<PackedLinear> Head(const std::string& name);
  // Experts' weights back to back: [E, PackedBytes].
  struct ExpertNames {
    std::vector<std::vector<std::string>> of;  // per expert: {gate, up} or {down}
  };
  struct PackedExperts {
    LinearShape shape;
    Buffer memory;
    ConstTensor packed() const;
    int64_t num_experts = 0;
  };
  absl::StatusOr<PackedExperts> Experts(const ExpertNames& names);
  // f32; the concatenation of the named tensors' slices.
  absl::StatusOr<Buffer> Vector(const std::vector<std::string>& names);

  // Rows of the embedding table of this rank, as stored: points into the file where it is mapped.
  struct Table {
    Buffer memory;  // empty when mapped
    ConstTensor rows;
    int64_t first_row = 0;
  };
  absl::StatusOr<Table> EmbeddingTable(const std::string& name);

 private:
  LinearShape ShapeOf(const std::vector<std::string>& names, bool gated) const;
  absl::Status PackInto(Tensor out, const LinearShape& shape, const std::vector<std::string>& names);
  absl::StatusOr<Buffer> Allocate(const std::string& what, int64_t num_bytes);
  void Advance(int64_t bytes);

  Options options_;
  int64_t bytes_done_ = 0;
};

}  // namespace plumbline
