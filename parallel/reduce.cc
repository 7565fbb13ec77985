#include "parallel/reduce.h"

#include <algorithm>

namespace plumbline {
namespace {

int64_t RoundUp(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

Buffer AllocateFloats(Device& device, int64_t num_elements) {
  Buffer buffer = device.Allocate(num_elements * sizeof(float));
  PL_CHECK_MSG(num_elements == 0 || buffer.data() != nullptr, "no memory for the exchange of partial sums");
  return buffer;
}

}  // namespace

PartialExchange::PartialExchange(Device& device, Ops& ops, Communicator& group, int64_t max_elements,
                                 int64_t gather_bytes)
    : ops_(ops), group_(group), max_elements_(max_elements), gather_elements_(gather_bytes / sizeof(float)) {
  const int64_t size = group.size();
  PL_CHECK_MSG(size == 1 || size == 2 || size == 4 || size == 8, "the tree needs 1, 2, 4 or 8 ranks");
  PL_CHECK(max_elements > 0);
  const int64_t padded = RoundUp(max_elements, size);
  const bool scatters = max_elements > gather_elements_;
  if (size == 1 || scatters) local_ = AllocateFloats(device, padded);
  if (size == 1) return;
  gathered_ = AllocateFloats(device, std::max(size * std::min(max_elements, gather_elements_), scatters ? padded : 0));
}

Tensor PartialExchange::Local(int64_t rows, int64_t columns) {
  PL_CHECK(rows >= 0 && columns >= 0 && rows * columns <= max_elements_);
  if (group_.size() == 1 || !Gathers(rows * columns)) return local_.View(DType::kF32, {rows, columns});
  return gathered_.View(DType::kF32, {group_.size(), rows, columns})
      .Rows(group_.rank(), 1)
      .Reshape({rows, columns});
}

absl::StatusOr<ConstTensor> PartialExchange::Exchange(int64_t rows, int64_t columns) {
  const int64_t size = group_.size();
  const Tensor own = Local(rows, columns);
  if (size == 1) return own.Reshape({1, rows, columns});
  if (Gathers(rows * columns)) {
    const Tensor all = gathered_.View(DType::kF32, {size, rows, columns});
    if (absl::Status status = group_.AllGather(all, own); !status.ok()) return status;
    return all;
  }
  // Rank r adds slice r of the elements. The pad past rows * columns holds leftovers; its sums are never looked at.
  const int64_t slice = RoundUp(rows * columns, size) / size;
  const Tensor sums = local_.View(DType::kF32, {size, slice});
  const Tensor partials = gathered_.View(DType::kF32, {size, slice});
  if (absl::Status status = group_.AllToAll(partials, sums); !status.ok()) return status;
  const Tensor own_sums = sums.Rows(group_.rank(), 1).Reshape({slice});
  ops_.TreeSum({.out = own_sums, .partials = partials});
  if (absl::Status status = group_.AllGather(sums, own_sums); !status.ok()) return status;
  return local_.View(DType::kF32, {1, rows, columns});
}

}  // namespace plumbline
