#include "worker/epoch_links.h"

#include <thread>

#include "absl/strings/str_cat.h"
#include "parallel/counting_communicator.h"
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
      {.name = absl::StrCat(options_.epoch, "/tp/", stage), .rank = tp_index, .size = mesh.tp},
      tp_));
  return ConnectGroup(
      {.name = absl::StrCat(options_.epoch, "/pp/", tp_index), .rank = stage, .size = mesh.pp},
      pp_);
}

absl::Status EpochLinks::ConnectGroup(const Group& group, std::unique_ptr<Communicator>& member) {
  auto connected = ConnectProcesses({.rank = group.rank,
                                     .size = group.size,
                                     .group = group.name,
                                     .bind_address = options_.bind_address,
                                     .timeout = options_.call_timeout,
                                     .connect_timeout = kConnectTimeout},
                                    options_.transport, *store_);
  std::lock_guard lock(mutex_);
  // Kept in any case: its end is not to be waited for here.
  if (connected.ok()) {
    member = MakeCountingCommunicator(*std::move(connected), &progress_);
  }
  return interrupted_.ok() ? connected.status() : interrupted_;
}

void EpochLinks::Interrupt(const absl::Status& reason) {
  store_->Cancel();
  Communicator *tp = nullptr, *pp = nullptr;
  {
    std::lock_guard lock(mutex_);
    if (!interrupted_.ok()) return;
    interrupted_ = reason;
    tp = tp_.get();
    pp = pp_.get();
  }
  // Side by side: each tells its peers and waits for them a little.
  std::thread tp_abort([&] {
    if (tp != nullptr) tp->Abort(reason);
  });
  if (pp != nullptr) pp->Abort(reason);
  tp_abort.join();
}

}  // namespace plumbline
