#include "parallel/reduce.h"

#include <algorithm>

namespace plumbline {
namespace {

Buffer AllocateFloats(Device& device, int64_t num_elements) {
  Buffer buffer = device.Allocate(num_elements * sizeof(float));
  PL_CHECK_MSG(num_elements == 0 || buffer.data() != nullptr, "no memory for the exchange of partial sums");
  return buffer;
}

}  // namespace

PartialExchange::PartialExchange(Device& device, Ops& ops, Communicator& group, int64_t max_rows, int64_t columns,
                                 int64_t gather_bytes)
    : ops_(ops), group_(group), max_rows_(max_rows), columns_(columns), gather_elements_(gather_bytes / sizeof(float)) {
  const int64_t size = group.size();
  PL_CHECK_MSG(size == 1 || size == 2 || size == 4 || size == 8, "the tree needs 1, 2, 4 or 8 ranks");
  PL_CHECK(max_rows > 0 && columns > 0);
  const int64_t padded = RowsPerRank(max_rows) * size * columns;
  const bool scatters = !Gathers(max_rows);
  if (size == 1 || scatters) local_ = AllocateFloats(device, padded);
  if (size == 1) return;
  gathered_ = AllocateFloats(device, std::max(size * std::min(max_rows * columns, gather_elements_), scatters ? padded : 0));
}

Tensor PartialExchange::Local(int64_t rows) {
  PL_CHECK(rows >= 0 && rows <= max_rows_);
  if (group_.size() == 1 || !Gathers(rows)) return local_.View(DType::kF32, {rows, columns_});
  return gathered_.View(DType::kF32, {group_.size(), rows, columns_})
      .Rows(group_.rank(), 1)
      .Reshape({rows, columns_});
}

absl::StatusOr<ConstTensor> PartialExchange::ExchangeRows(int64_t rows) {
  PL_CHECK(IsByRows(rows) && rows <= max_rows_);
  const int64_t size = group_.size(), share = RowsPerRank(rows);
  const Tensor partials = gathered_.View(DType::kF32, {size, share, columns_});
  // Rows past the step's hold leftovers; their sums are never looked at.
  if (absl::Status status = group_.AllToAll(partials, local_.View(DType::kF32, {size, share, columns_})); !status.ok()) {
    return status;
  }
  return partials;
}

absl::StatusOr<ConstTensor> PartialExchange::Exchange(int64_t rows) {
  const int64_t size = group_.size();
  const Tensor own = Local(rows);
  if (size == 1) return own.Reshape({1, rows, columns_});
  if (Gathers(rows)) {
    const Tensor all = gathered_.View(DType::kF32, {size, rows, columns_});
    if (absl::Status status = group_.AllGather(all, own); !status.ok()) return status;
    return all;
  }
  auto partials = ExchangeRows(rows);
  if (!partials.ok()) return partials.status();
  const int64_t share = RowsPerRank(rows) * columns_;
  const Tensor sums = local_.View(DType::kF32, {size, share});
  const Tensor own_sums = sums.Rows(group_.rank(), 1).Reshape({share});
  ops_.TreeSum({.out = own_sums, .partials = partials->Reshape({size, share})});
  if (absl::Status status = group_.AllGather(sums, own_sums); !status.ok()) return status;
  return local_.View(DType::kF32, {1, rows, columns_});
}

}  // namespace plumbline
