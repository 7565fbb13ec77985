#include "parallel/counting_communicator.h"

#include <utility>

namespace plumbline {
namespace {

class CountingCommunicator final : public Communicator {
 public:
  CountingCommunicator(std::unique_ptr<Communicator> inner, ProgressRecord* record)
      : inner_(std::move(inner)), record_(record) {}

  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }

  absl::Status AllGather(Tensor out, ConstTensor in) override {
    record_->Enter(RankOperation::kAllGather);
    return Left(inner_->AllGather(out, in));
  }
  absl::Status AllToAll(Tensor out, ConstTensor in) override {
    record_->Enter(RankOperation::kAllToAll);
    return Left(inner_->AllToAll(out, in));
  }
  absl::Status Broadcast(Tensor data, int root) override {
    record_->Enter(RankOperation::kBroadcast);
    return Left(inner_->Broadcast(data, root));
  }
  absl::Status Send(ConstTensor data, int peer) override {
    record_->Enter(RankOperation::kSend);
    return Left(inner_->Send(data, peer));
  }
  absl::Status Recv(Tensor data, int peer) override {
    record_->Enter(RankOperation::kRecv);
    return Left(inner_->Recv(data, peer));
  }

  absl::Status Health() const override { return inner_->Health(); }
  void Abort(absl::Status reason) override { inner_->Abort(std::move(reason)); }

 private:
  absl::Status Left(absl::Status status) {
    if (status.ok()) record_->Leave();
    return status;
  }

  const std::unique_ptr<Communicator> inner_;
  ProgressRecord* const record_;
};

}  // namespace

std::unique_ptr<Communicator> MakeCountingCommunicator(std::unique_ptr<Communicator> inner, ProgressRecord* record) {
  return std::make_unique<CountingCommunicator>(std::move(inner), record);
}

}  // namespace plumbline
