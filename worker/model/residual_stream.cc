#include "worker/model/residual_stream.h"

#include "absl/strings/str_cat.h"
#include "proto/status.h"

namespace plumbline {
namespace {

int64_t PaddedRows(int64_t rows, int64_t size) { return (rows + size - 1) / size * size; }

}  // namespace

absl::StatusOr<ResidualStream> ResidualStream::Make(Device& device, int64_t max_rows, int64_t hidden, DType act, int tp) {
  ResidualStream stream;
  stream.max_rows_ = max_rows;
  stream.hidden_ = hidden;
  stream.act_ = act;
  const int64_t padded = PaddedRows(max_rows, tp);
  stream.h_ = device.Allocate(padded * hidden * static_cast<int64_t>(sizeof(float)));
  stream.normed_ = device.Allocate(Scratch::SpreadBytesOf(act, padded, hidden));
  if (stream.h_.data() == nullptr || stream.normed_.data() == nullptr) {
    return absl::ResourceExhaustedError(absl::StrCat("no memory for the activations of ", max_rows, " tokens"));
  }
  return stream;
}

int64_t ResidualStream::Bytes(int64_t max_rows, int64_t hidden, DType act, int tp) {
  const int64_t padded = PaddedRows(max_rows, tp), row = hidden * static_cast<int64_t>(sizeof(float));
  return padded * row + Scratch::SpreadBytesOf(act, padded, hidden) + padded * row * (tp > 1 ? tp + 2 : 1);
}

void ResidualStream::Connect(Device& device, Ops& ops, Communicator& group, int64_t gather_bytes) {
  device_ = &device;
  ops_ = &ops;
  group_ = &group;
  exchange_ = std::make_unique<PartialExchange>(device, ops, group, max_rows_, hidden_, gather_bytes);
}

void ResidualStream::Begin(int64_t rows) {
  PL_CHECK(exchange_ != nullptr && rows <= max_rows_);
  rows_ = rows;
  by_rows_ = exchange_->IsByRows(rows);
  by_rows_ ? Share(exchange_->RowsPerRank(rows), group_->rank()) : Share(rows, 0);
  device_->Zero(own_h_);
  partials_ = {};
}

void ResidualStream::Share(int64_t rows_per_rank, int rank) {
  const Shape all = {by_rows_ ? rows_per_rank * group_->size() : rows_per_rank, hidden_};
  all_h_ = h_.View(DType::kF32, all);
  all_normed_ = {normed_.data(), act_, all, SpreadStride(act_, hidden_)};
  own_h_ = all_h_.Rows(rank * rows_per_rank, rows_per_rank);
  own_normed_ = all_normed_.Rows(rank * rows_per_rank, rows_per_rank);
}

absl::Status ResidualStream::Exchange() {
  PL_ASSIGN_OR_RETURN(partials_, by_rows_ ? exchange_->ExchangeRows(rows_) : exchange_->Exchange(rows_));
  return absl::OkStatus();
}

void ResidualStream::Add() {
  if (!partials_.empty()) ops_->ReduceAdd({.h = own_h_, .partials = partials_});
  partials_ = {};
}

absl::Status ResidualStream::AddAndNorm(const Norm& norm) {
  ops_->ReduceAddRmsNorm({.out = own_normed_,
                          .h = own_h_,
                          .partials = partials_,
                          .weight = norm.weight,
                          .weight_offset = norm.weight_offset,
                          .eps = norm.eps});
  partials_ = {};
  if (!by_rows_) return absl::OkStatus();
  // With the gaps between the rows, which makes it one piece of memory.
  const auto with_gaps = [this](const Tensor& t) { return Tensor(t.raw(), act_, {t.dim(0), t.row_stride()}); };
  return group_->AllGather(with_gaps(all_normed_), with_gaps(own_normed_));
}

absl::Status ResidualStream::Keep(const Tensor& kept, int64_t count, Scratch& scratch) {
  if (count == rows_ && !by_rows_) return absl::OkStatus();
  Add();
  if (by_rows_ && count > 0) PL_RETURN_IF_ERROR(group_->AllGather(all_h_, own_h_));
  if (count > 0 && count < rows_) {
    scratch.Reset();
    Tensor gathered = scratch.Take(DType::kF32, {count, hidden_});
    ops_->Embed({.out = gathered, .tokens = kept, .table = all_h_});
    device_->Copy(all_h_.Rows(0, count), gathered);
  }
  rows_ = count;
  by_rows_ = false;
  Share(count, 0);
  return absl::OkStatus();
}

}  // namespace plumbline
