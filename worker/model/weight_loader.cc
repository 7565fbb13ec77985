#include "worker/model/weight_loader.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/half.h"
#include "proto/status.h"

namespace plumbline {
namespace {

constexpr int64_t kPieceBytes = int64_t{16} << 20;

// Splits ranges into pieces of at most kPieceBytes.
std::vector<RowRange> Pieces(const std::vector<RowRange>& ranges, int64_t row_bytes) {
  const int64_t step = std::max<int64_t>(1, kPieceBytes / std::max<int64_t>(1, row_bytes));
  std::vector<RowRange> pieces;
  for (const RowRange& range : ranges) {
    for (int64_t done = 0; done < range.count; done += step) {
      pieces.push_back({range.first + done, std::min(step, range.count - done)});
    }
  }
  return pieces;
}

void AppendFloats(const ConstTensor& tensor, std::vector<float>& out) {
  for (int64_t i = 0; i < tensor.num_elements(); ++i) {
    switch (tensor.dtype()) {
      case DType::kBf16:
        out.push_back(ToFloat(tensor.as<Bf16>()[i]));
        break;
      case DType::kF16:
        out.push_back(ToFloat(tensor.as<F16>()[i]));
        break;
      default:
        out.push_back(tensor.as<float>()[i]);
    }
  }
}

}  // namespace

ConstTensor WeightLoader::PackedExperts::packed() const {
  return bytes.view.Reshape({num_experts, bytes.view.num_elements() / num_experts});
}

absl::StatusOr<Buffer> WeightLoader::Allocate(const std::string& what, int64_t num_bytes) {
  Buffer buffer = options_.device->Allocate(num_bytes);
  if (buffer.data() == nullptr && num_bytes > 0) {
    return absl::ResourceExhaustedError(
        absl::StrCat("no memory for ", what, ": ", num_bytes, " bytes on ", options_.device->Name()));
  }
  return buffer;
}

void WeightLoader::Advance(int64_t bytes) {
  bytes_done_ += bytes;
  if (options_.on_progress) options_.on_progress(bytes_done_);
}

LinearShape WeightLoader::ShapeOf(const std::vector<std::string>& names, bool gated) const {
  LinearShape shape = {.dtype = options_.act, .gated = gated};
  for (const std::string& name : names) {
    const TensorSlice slice = options_.plan->SliceOf(name, options_.rank);
    shape.n += slice.num_rows();
    shape.k = slice.num_columns;
  }
  if (options_.plan->Find(names[0]).split == Split::kColumns) {
    shape.num_leaves = kNumLeaves / options_.plan->mesh().tp;
  }
  return shape;
}

absl::Status WeightLoader::PackInto(Tensor out, const LinearShape& shape,
                                    const std::vector<std::string>& names) {
  int64_t first_row = 0;
  for (const std::string& name : names) {
    const TensorPlan& tensor = options_.plan->Find(name);
    const TensorSlice slice = options_.plan->SliceOf(name, options_.rank);
    for (const RowRange& piece : Pieces(slice.rows, tensor.columns * 2)) {
      PL_ASSIGN_OR_RETURN(ConstTensor source, options_.source->Rows(tensor, piece));
      options_.ops->PackLinear({.out = out,
                                .shape = shape,
                                .source = source,
                                .first_row = first_row,
                                .first_column = slice.first_column});
      first_row += piece.count;
      options_.device->Synchronize();
      options_.source->Release(tensor, piece);
      Advance(piece.count * slice.num_columns * static_cast<int64_t>(SizeOf(source.dtype())));
    }
  }
  return absl::OkStatus();
}

absl::Status WeightLoader::PassOver(const std::vector<std::string>& names) {
  int64_t bytes = 0;
  for (const std::string& name : names) {
    const TensorPlan& tensor = options_.plan->Find(name);
    const TensorSlice slice = options_.plan->SliceOf(name, options_.rank);
    for (const RowRange& range : slice.rows) {
      PL_ASSIGN_OR_RETURN(const ConstTensor rows, options_.source->Rows(tensor, range));
      bytes += range.count * slice.num_columns * static_cast<int64_t>(SizeOf(rows.dtype()));
      options_.source->Release(tensor, range);  // a small neighbour that was read may have mapped them
    }
  }
  Advance(bytes);
  return absl::OkStatus();
}

absl::StatusOr<PackedBytes> WeightLoader::FindOrPack(const std::vector<std::string>& names, int64_t num_bytes,
                                                     const Pack& pack) {
  const std::string name = absl::StrJoin(names, "|");
  PackedBytes bytes;
  if (options_.cache != nullptr && options_.cache->is_mapped()) {
    PL_ASSIGN_OR_RETURN(const WeightCache::Found found, options_.cache->Find(name, num_bytes));
    bytes.view = found.packed;
    if (found.should_copy) {
      PL_ASSIGN_OR_RETURN(bytes.memory, Allocate(names[0], num_bytes));
      const Tensor copy = bytes.memory.View(DType::kU8, {num_bytes});
      options_.device->Upload(copy, found.packed.raw());
      options_.cache->Release(found.packed);
      bytes.view = copy;
    }
    PL_RETURN_IF_ERROR(PassOver(names));
    return bytes;
  }
  PL_ASSIGN_OR_RETURN(bytes.memory, Allocate(names[0], num_bytes));
  PL_RETURN_IF_ERROR(pack(bytes.memory.View(DType::kU8, {num_bytes})));
  bytes.view = bytes.memory.View(DType::kU8, {num_bytes});
  packed_.push_back({name, bytes.view});
  return bytes;
}

absl::StatusOr<PackedLinear> WeightLoader::PackOne(const LinearShape& shape, const std::vector<std::string>& names) {
  PackedLinear linear = {.shape = shape, .bytes = {}};
  PL_ASSIGN_OR_RETURN(linear.bytes, FindOrPack(names, options_.ops->PackedBytes(shape),
                                               [&](Tensor out) { return PackInto(out, shape, names); }));
  return linear;
}

absl::StatusOr<PackedLinear> WeightLoader::Linear(const std::vector<std::string>& names) {
  return PackOne(ShapeOf(names, /*gated=*/false), names);
}

absl::StatusOr<PackedLinear> WeightLoader::Gated(const std::string& gate, const std::string& up) {
  return PackOne(ShapeOf({gate, up}, /*gated=*/true), {gate, up});
}

absl::StatusOr<PackedLinear> WeightLoader::Head(const std::string& name) {
  LinearShape shape = ShapeOf({name}, /*gated=*/false);
  shape.n = options_.plan->VocabLeafRows() * (kNumLeaves / options_.plan->mesh().tp);
  return PackOne(shape, {name});
}

absl::StatusOr<WeightLoader::PackedExperts> WeightLoader::Experts(const ExpertNames& names) {
  PackedExperts experts;
  experts.num_experts = static_cast<int64_t>(names.of.size());
  experts.shape = ShapeOf(names.of[0], /*gated=*/names.of[0].size() == 2);
  const int64_t bytes = options_.ops->PackedBytes(experts.shape);
  std::vector<std::string> all_names;
  for (const auto& of_expert : names.of) all_names.insert(all_names.end(), of_expert.begin(), of_expert.end());
  const auto pack = [&](Tensor out) -> absl::Status {
    Tensor all = out.Reshape({experts.num_experts, bytes});
    for (int64_t e = 0; e < experts.num_experts; ++e) {
      PL_RETURN_IF_ERROR(PackInto(all.Rows(e, 1).Reshape({bytes}), experts.shape, names.of[e]));
    }
    return absl::OkStatus();
  };
  PL_ASSIGN_OR_RETURN(experts.bytes, FindOrPack(all_names, bytes * experts.num_experts, pack));
  return experts;
}

absl::StatusOr<Buffer> WeightLoader::Vector(const std::vector<std::string>& names) {
  std::vector<float> values;
  for (const std::string& name : names) {
    const TensorPlan& tensor = options_.plan->Find(name);
    for (const RowRange& range : options_.plan->SliceOf(name, options_.rank).rows) {
      PL_ASSIGN_OR_RETURN(ConstTensor rows, options_.source->Rows(tensor, range));
      AppendFloats(rows, values);
      Advance(static_cast<int64_t>(rows.num_bytes()));
    }
  }
  const int64_t count = static_cast<int64_t>(values.size());
  PL_ASSIGN_OR_RETURN(Buffer buffer, Allocate(names[0], count * 4));
  options_.device->Upload(buffer.View(DType::kF32, {count}), values.data());
  return buffer;
}

absl::StatusOr<WeightLoader::Table> WeightLoader::EmbeddingTable(const std::string& name) {
  const TensorPlan& tensor = options_.plan->Find(name);
  const TensorSlice slice = options_.plan->SliceOf(name, options_.rank);
  Table table;
  table.rows = ConstTensor(nullptr, options_.act, {0, tensor.columns});  // a rank past the vocabulary's end
  table.first_row = slice.rows.empty() ? 0 : slice.rows[0].first;
  if (options_.source->IsMapped() && !slice.rows.empty()) {
    PL_ASSIGN_OR_RETURN(table.rows, options_.source->Rows(tensor, slice.rows[0]));
    Advance(static_cast<int64_t>(table.rows.num_bytes()));
    return table;
  }
  int64_t filled = 0;
  for (const RowRange& piece : Pieces(slice.rows, tensor.columns * 2)) {
    PL_ASSIGN_OR_RETURN(ConstTensor source, options_.source->Rows(tensor, piece));
    const int64_t row_bytes = static_cast<int64_t>(source.num_bytes()) / piece.count;
    if (table.memory.data() == nullptr) {
      PL_ASSIGN_OR_RETURN(table.memory, Allocate(name, slice.num_rows() * row_bytes));
      table.rows = table.memory.View(source.dtype(), {slice.num_rows(), tensor.columns});
    }
    options_.device->Upload(
        Tensor(static_cast<std::byte*>(table.memory.data()) + filled, source.dtype(), source.shape()),
        source.raw());
    filled += static_cast<int64_t>(source.num_bytes());
    Advance(static_cast<int64_t>(source.num_bytes()));
  }
  return table;
}

}  // namespace plumbline
