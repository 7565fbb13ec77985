#include "worker/epoch_links.h"

#include "absl/strings/str_cat.h"
#include "proto/status.h"

namespace plumbline {
namespace {

// All ranks have loaded when an epoch connects, so whoever does not answer soon is not there.
constexpr absl::Duration kConnectTimeout = absl::Seconds(10);

}  // namespace

EpochLinks::EpochLinks(Options options, std::unique_ptr<WorkerLink::Store> store)
    : options_(std::move(options)), store_(std::move(store)) {}

absl::Status EpochLinks::Connect() {
  const Mesh& mesh = options_.mesh;
  const int stage = mesh.StageOf(options_.rank), tp_index = mesh.TpIndexOf(options_.rank);
  PL_RETURN_IF_ERROR(ConnectGroup(
      {.name = absl::StrCat(options_.epoch, "/tp/", stage), .rank = tp_index, .size = mesh.tp}, tp_));
  return ConnectGroup({.name = absl::StrCat(options_.epoch, "/pp/", tp_index), .rank = stage, .size = mesh.pp}, pp_);
}

absl::Status EpochLinks::ConnectGroup(const Group& group, std::unique_ptr<Communicator>& member) {
  auto connected = ConnectGloo({.rank = group.rank,
                                .size = group.size,
                                .group = group.name,
                                .bind_address = options_.bind_address,
                                .timeout = options_.call_timeout,
                                .connect_timeout = kConnectTimeout},
                               *store_);
  std::lock_guard lock(mutex_);
  if (!interrupted_.ok()) return interrupted_;
  PL_RETURN_IF_ERROR(connected.status());
  member = *std::move(connected);
  return absl::OkStatus();
}

void EpochLinks::Interrupt(absl::Status reason) {
  store_->Cancel();
  std::lock_guard lock(mutex_);
  if (!interrupted_.ok()) return;
  interrupted_ = reason;
  for (Communicator* member : {tp_.get(), pp_.get()}) {
    if (member != nullptr) member->Abort(reason);
  }
}

}  // namespace plumbline
