// ResidualStream: h of one step over the tensor-parallel group, and the partial sums not yet added to it. In a step of few
// rows every rank keeps up all of them; of many rows each rank adds and norms a share and the norms are gathered (sequence
// parallelism, arXiv:2205.05198). A row's bits are the same either way.
#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/device.h"
#include "kernels/ops.h"
#include "parallel/communicator.h"
#include "parallel/reduce.h"
#include "worker/model/context.h"

namespace plumbline {

class ResidualStream {
 public:
  struct Norm {
    ConstTensor weight;  // [D] f32
    float weight_offset = 0;
    float eps = 0;
  };

  ResidualStream() = default;
  // Lays out memory for steps of max_rows rows over groups of tp ranks. RESOURCE_EXHAUSTED.
  static absl::StatusOr<ResidualStream> Make(Device& device, int64_t max_rows, int64_t hidden, DType act, int tp);
  // Of those, and of the exchange.
  static int64_t Bytes(int64_t max_rows, int64_t hidden, DType act, int tp);
  // The group outlives the next Connect or the last call.
  void Connect(Device& device, Ops& ops, Communicator& group, int64_t gather_bytes);

  // A step of so many rows: h is zero, nothing is to be added. REQUIRES: Connect.
  void Begin(int64_t rows);
  int64_t rows() const { return rows_; }

  // Where this rank writes what it adds to h: [T, D] f32, complete before Exchange.
  Tensor Contribution() { return exchange_->Local(rows_); }
  absl::Status Exchange();
  // Adds what was exchanged last.
  void Add();
  // Adds it, then leaves the norms of all rows in normed.
  absl::Status AddAndNorm(const Norm& norm);
  Tensor normed() const { return all_normed_.Rows(0, rows_); }  // [T, D] act, spread

  // Adds what was exchanged last and leaves the rows `kept` [count] i32, in ascending order, whole on every rank.
  absl::Status Keep(const Tensor& kept, int64_t count, Scratch& scratch);
  // The rows that this rank keeps up: all, or its share, padded to the others' length. [R, D] f32.
  Tensor own() const { return own_h_; }

 private:
  void Share(int64_t rows_per_rank, int rank);

  Device* device_ = nullptr;
  Ops* ops_ = nullptr;
  Communicator* group_ = nullptr;
  int64_t max_rows_ = 0, hidden_ = 0;
  DType act_ = DType::kBf16;
  Buffer h_, normed_;
  std::unique_ptr<PartialExchange> exchange_;

  int64_t rows_ = 0;
  bool by_rows_ = false;
  Tensor all_h_, all_normed_, own_h_, own_normed_;  // own: parts of all
  ConstTensor partials_;                            // [L, R, D] f32, or empty
};

}  // namespace plumbline
