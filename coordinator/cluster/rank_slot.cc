#include "coordinator/cluster/rank_slot.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/cluster.pb.h"

namespace plumbline {
namespace {

// Several heartbeats are due by then: a rank that is alive would have spoken.
constexpr absl::Duration kSilence = absl::Seconds(2);

}  // namespace

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
  info.operation.clear();
}

void RankSlot::BeginEpoch(absl::Time now) {
  loaded = connected = false;
  epoch_steps = 0;
  progress = {};
  info.operation = Describe(progress);
  last_progress = now;
  info.state = "loading";
}

bool RankSlot::TakeHeartbeat(const v1::Heartbeat& heartbeat, uint64_t epoch) {
  info.rss_bytes = heartbeat.rss_bytes();
  const v1::StepProgress& told = heartbeat.progress();
  if (heartbeat.epoch() != epoch || told.operation() >= kNumRankOperations) return false;
  const RankProgress now = {.step = told.step(),
                            .operation = static_cast<RankOperation>(told.operation()),
                            .collectives = told.collectives(),
                            .sends = told.sends(),
                            .receives = told.receives()};
  if (now == progress) return false;
  progress = now;
  info.operation = Describe(progress);
  return true;
}

StalledRank RankSlot::AsStalled(std::string name, uint64_t num_steps, absl::Time now) const {
  return {.name = std::move(name),
          .progress = progress,
          .has_work = epoch_steps < num_steps,
          .is_silent = now - last_heard > kSilence};
}

ClusterFault::Culprit RankSlot::AsCulprit() const {
  return {.rank = info.rank, .host = info.host, .pid = info.pid, .operation = info.operation};
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

std::vector<RankSlot> MakeSlots(const Mesh& mesh, const ShardPlan& plan, const std::vector<RankBytes>& needs) {
  std::vector<RankSlot> slots(mesh.size());
  for (int rank = 0; rank < mesh.size(); ++rank) {
    const int stage = mesh.StageOf(rank);
    const StageRange layers = plan.LayersOf(stage);
    slots[rank].info = {.rank = rank,
                        .stage = stage,
                        .tp_index = mesh.TpIndexOf(rank),
                        .first_layer = static_cast<int>(layers.first),
                        .last_layer = static_cast<int>(layers.last),
                        .state = "absent",
                        .planned_bytes = needs[rank].total()};
  }
  return slots;
}

}  // namespace plumbline
