// WeightLoader: turns a rank's slices of the checkpoint into what layers hold: packed linears, f32 vectors, the
// embedding table. Pieces are read and packed a few megabytes at a time, so that a rank never holds its weights twice;
// with a cache that holds the packed linears they are taken from there.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/device.h"
#include "kernels/ops.h"
#include "parallel/shard_plan.h"
#include "worker/weight_cache.h"
#include "worker/weight_source.h"

namespace plumbline {

// Packed bytes on the device.
struct PackedBytes {
  Buffer memory;     // empty when they lie in the cache's mapping
  ConstTensor view;  // [bytes] u8
};

// A linear's weight.
struct PackedLinear {
  LinearShape shape;
  PackedBytes bytes;

  ConstTensor packed() const { return bytes.view; }
};

class WeightLoader {
 public:
  struct Options {
    Device* device = nullptr;
    Ops* ops = nullptr;
    WeightSource* source = nullptr;
    WeightCache* cache = nullptr;  // null: none
    const ShardPlan* plan = nullptr;
    int rank = 0;
    DType act = DType::kBf16;                                   // the weights' type in memory
    std::function<void(int64_t bytes_done)> on_progress;        // checkpoint bytes; may be empty
  };
  explicit WeightLoader(Options options) : options_(std::move(options)) {}

  // The rows of the named tensors below each other: q|k|v and the like. A tensor cut by columns is a row-parallel linear
  // and gets its leaves. RESOURCE_EXHAUSTED when memory runs out; DATA_LOSS: the cache is damaged; otherwise the source's
  // errors.
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
    PackedBytes bytes;
    int64_t num_experts = 0;
    ConstTensor packed() const;
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

  // What was packed so far, for the cache. Valid as long as what was loaded.
  const std::vector<WeightCache::Weight>& packed() const { return packed_; }

 private:
  using Pack = std::function<absl::Status(Tensor out)>;
  LinearShape ShapeOf(const std::vector<std::string>& names, bool gated) const;
  // The cache's bytes, or new memory that `pack` fills. names: of all tensors in it.
  absl::StatusOr<PackedBytes> FindOrPack(const std::vector<std::string>& names, int64_t num_bytes, const Pack& pack);
  absl::StatusOr<PackedLinear> PackOne(const LinearShape& shape, const std::vector<std::string>& names);
  // Counts the named tensors' slices as held, without reading them.
  absl::Status PassOver(const std::vector<std::string>& names);
  absl::Status PackInto(Tensor out, const LinearShape& shape, const std::vector<std::string>& names);
  absl::StatusOr<Buffer> Allocate(const std::string& what, int64_t num_bytes);
  void Advance(int64_t bytes);

  Options options_;
  int64_t bytes_done_ = 0;
  std::vector<WeightCache::Weight> packed_;
};

}  // namespace plumbline
