// Ordered sums over a group: the partial sums of a row-parallel linear, added in the balanced tree of exactness.md 3 at
// every group size. The communicator moves bytes; ops.TreeSum adds.
#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/device.h"
#include "kernels/ops.h"
#include "parallel/communicator.h"

namespace plumbline {

// Exchanges the ranks' subtree sums of one step. Owns its staging memory, laid out at construction.
inline constexpr int64_t kGatherBytes = int64_t{256} << 10;  // of a rank's message: more goes by rows

class PartialExchange {
 public:
  // Of steps of at most max_rows rows (T) of `columns` (D). A message of at most gather_bytes per rank is all-gathered (the
  // consumer adds the size() slices); a larger one goes by all-to-all, and its sums by all-gather where all are wanted.
  // REQUIRES: group.size() is 1, 2, 4 or 8 and the device has room for about twice as many f32.
  PartialExchange(Device& device, Ops& ops, Communicator& group, int64_t max_rows, int64_t columns,
                  int64_t gather_bytes = kGatherBytes);

  // Where this rank writes its own partial sum before an exchange: [T, D] f32.
  Tensor Local(int64_t rows);
  // All ranks' sums of what Local held: [size, T, D] or [1, T, D] f32, valid until the next Local call. The tree over the
  // first dimension gives the same bits whichever way was taken.
  absl::StatusOr<ConstTensor> Exchange(int64_t rows);

  // A message too large to be all-gathered: a rank had better take its share of the rows alone.
  bool IsByRows(int64_t rows) const { return group_.size() > 1 && !Gathers(rows); }
  // R: T / size, rounded up. Rank r's share are rows [r * R, (r + 1) * R), those past T undefined.
  int64_t RowsPerRank(int64_t rows) const { return (rows + group_.size() - 1) / group_.size(); }
  // All ranks' sums of the rows of this rank's share: [size, R, D] f32, as Exchange. REQUIRES: IsByRows.
  absl::StatusOr<ConstTensor> ExchangeRows(int64_t rows);

 private:
  bool Gathers(int64_t rows) const { return rows * columns_ <= gather_elements_; }

  Ops& ops_;
  Communicator& group_;
  int64_t max_rows_, columns_;
  int64_t gather_elements_;
  Buffer local_;     // [max_rows, padded to a multiple of size, D] f32: own partial sum, then the total; or empty
  Buffer gathered_;  // [size * min(max_rows * D, gather_elements)] or as local_, the larger of the two; empty at size 1
};

}  // namespace plumbline
