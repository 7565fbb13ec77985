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
class PartialExchange {
 public:
  // max_elements: the largest T * D of a step. A message of at most gather_bytes per rank is all-gathered (the consumer
  // adds the size() slices); a larger one goes by all-to-all + TreeSum + all-gather (one slice is left).
  // REQUIRES: group.size() is 1, 2, 4 or 8 and the device has room for about twice max_elements f32.
  PartialExchange(Device& device, Ops& ops, Communicator& group, int64_t max_elements,
                  int64_t gather_bytes = int64_t{256} << 10);

  // Where this rank writes its own partial sum before Exchange: [T, D] f32.
  Tensor Local(int64_t rows, int64_t columns);
  // All ranks' sums of what Local held: [size, T, D] or [1, T, D] f32, valid until the next Local call. The tree over the
  // first dimension gives the same bits whichever way was taken.
  absl::StatusOr<ConstTensor> Exchange(int64_t rows, int64_t columns);

 private:
  bool Gathers(int64_t num_elements) const { return num_elements <= gather_elements_; }

  Ops& ops_;
  Communicator& group_;
  int64_t max_elements_;
  int64_t gather_elements_;
  Buffer local_;     // [max_elements, padded to a multiple of size] f32: own partial sum, then the total; or empty
  Buffer gathered_;  // [size * min(max_elements, gather_elements)] or as local_, the larger of the two; empty at size 1
};

}  // namespace plumbline
