#include "coordinator/cluster/rank_slot.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/cluster.pb.h"

namespace plumbline {

WorkerIdentity IdentityOf(const v1::Hello& hello) {
  return {.build = hello.build(),
          .host = hello.host(),
          .pid = hello.pid(),
          .arithmetics = {hello.arithmetics().begin(), hello.arithmetics().end()},
          .memory_bytes = hello.memory_bytes(),
          .host_memory_bytes = hello.host_memory_bytes(),
          .wanted_rank = hello.wanted_rank()};
}

void RankSlot::Occupy(std::shared_ptr<AttachedWorker> newcomer, const v1::Hello& hello,
                      absl::Time now) {
  worker = std::move(newcomer);
  last_heard = now;
  has_weights = false;
  info.host = hello.host();
  info.pid = hello.pid();
  info.state = "loading";
  info.steps = 0;
  info.rss_bytes = 0;
  info.weight_bytes = 0;
  info.load_fraction = 0;
}

void RankSlot::BeginEpoch(absl::Time now) {
  loaded = connected = false;
  epoch_steps = 0;
  last_progress = now;
  info.state = "loading";
}

absl::Status RankSlot::CheckAlive(absl::Time now, const Patience& patience) const {
  if (now - last_heard > patience.heartbeat) {
    return absl::DeadlineExceededError(
        absl::StrCat("gave no sign of life for ", absl::FormatDuration(now - last_heard)));
  }
  if (!loaded && now - last_progress > patience.load) {
    return absl::DeadlineExceededError(
        absl::StrCat("made no progress loading for ", absl::FormatDuration(patience.load)));
  }
  if (!connected && now - last_progress > patience.connect) {
    return absl::DeadlineExceededError(absl::StrCat("did not connect to its peers within ",
                                                    absl::FormatDuration(patience.connect)));
  }
  return absl::OkStatus();
}

void RankSlot::Vacate() {
  worker = nullptr;
  has_weights = false;
  info.state = "lost";
}

}  // namespace plumbline
