#include "coordinator/cluster/cluster.h"

#include <algorithm>
#include <mutex>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "coordinator/cluster/coordinator_messages.h"
#include "coordinator/cluster/epoch_store.h"
#include "coordinator/cluster/event_queue.h"
#include "coordinator/cluster/membership.h"
#include "coordinator/cluster/rank_slot.h"
#include "coordinator/cluster/stall.h"
#include "coordinator/cluster/steps_in_flight.h"
#include "coordinator/cluster/ticker.h"
#include "coordinator/cluster/worker_link_server.h"
#include "kernels/check.h"
#include "parallel/step_codec.h"
#include "proto/cluster.pb.h"
#include "proto/status.h"

namespace plumbline {
namespace {

constexpr absl::Duration kTick = absl::Milliseconds(50);
// After a rank has failed while every worker is still there: the dead one's own link is about to end.
constexpr absl::Duration kSettleTime = absl::Milliseconds(20);
constexpr absl::Duration kConnectTimeout = absl::Seconds(20);
// A pause of this process is not the workers' silence.
constexpr absl::Duration kPauseThreshold = absl::Seconds(1);

using Worker = std::shared_ptr<AttachedWorker>;
using Kind = ClusterEvent::Kind;

// The rank's own transport or its peers; another epoch may go well. Anything else would fail again.
bool IsTransient(absl::StatusCode code) {
  return code == absl::StatusCode::kUnavailable || code == absl::StatusCode::kDeadlineExceeded ||
         code == absl::StatusCode::kAborted || code == absl::StatusCode::kCancelled;
}

class ClusterImpl final : public Cluster {
 public:
  ClusterImpl(ClusterOptions options, ModelConfig config, const ShardPlan& plan)
      : options_(std::move(options)),
        config_(std::move(config)),
        needs_(PlanMemory(config_, plan, options_.limits,
                          options_.compute_f32 ? DType::kF32 : config_.dtype)),
        membership_(
            {.mesh = options_.mesh, .build = options_.build, .arithmetic = options_.arithmetic}),
        slots_(MakeSlots(options_.mesh, plan, needs_)),
        steps_({.least = std::min(options_.late_step_least, options_.step_timeout), .most = options_.step_timeout}) {
    gather_deadline_ = absl::Now() + options_.join_timeout;
    last_tick_ = absl::Now();
  }

  ~ClusterImpl() override {
    Stop();
    ticker_.reset();
    server_.reset();
  }

  absl::Status Listen() {
    ticker_ = std::make_unique<Ticker>([this] { return Tick(); });
    PL_ASSIGN_OR_RETURN(
        server_, WorkerLinkServer::Listen(
                     {.listen = options_.worker_listen, .join_token = options_.join_token, .tls = options_.tls},
                     &store_,
                     {.on_message =
                          [this](const Worker& worker, v1::WorkerMessage message) {
                            Handle(worker, std::move(message));
                          },
                      .on_closed = [this](const Worker& worker,
                                          absl::Status status) { HandleClosed(worker, status); }}));
    return absl::OkStatus();
  }

  const std::string& worker_address() const override { return server_->address(); }

  void Start(std::function<void(RunnerEvent)> listener) override {
    {
      std::lock_guard lock(mutex_);
      listener_ = std::move(listener);
    }
    events_.Open();
    events_.Deliver();
  }

  void Submit(StepPlan plan) override {
    const CoordinatorMessagePtr message = StepPlanMessage(EncodeStepPlan(plan));
    std::lock_guard lock(mutex_);
    if (phase_ != Phase::kRunning || plan.epoch != epoch_) return;
    steps_.Submit(plan.step, plan.num_tokens(), absl::Now());
    for (RankSlot& slot : slots_) slot.worker->Send(message);
  }

  void Stop() override {
    {
      std::lock_guard lock(mutex_);
      if (phase_ != Phase::kFailed && phase_ != Phase::kStopped) SendHome("the coordinator stops");
      phase_ = Phase::kStopped;
    }
    events_.Deliver();
    events_.Close();
  }

  void Fail(absl::Status reason) override {
    {
      std::lock_guard lock(mutex_);
      FailLocked(std::move(reason));
    }
    events_.Deliver();
  }

  ClusterSnapshot Snapshot() const override {
    std::lock_guard lock(mutex_);
    ClusterSnapshot snapshot = {.epoch = epoch_,
                                .tp = options_.mesh.tp,
                                .pp = options_.mesh.pp,
                                .arithmetic = arithmetic_,
                                .ready = phase_ == Phase::kRunning,
                                .stalled_for = absl::ZeroDuration(),
                                .ranks = {},
                                .num_faults = num_faults_,
                                .last_fault = last_fault_};
    if (snapshot.ready) snapshot.stalled_for = steps_.QuietFor(absl::Now());
    for (const RankSlot& slot : slots_) snapshot.ranks.push_back(slot.info);
    return snapshot;
  }

 private:
  enum class Phase {
    kGathering,   // until every rank has a worker
    kLoading,     // until every rank holds its weights
    kConnecting,  // until every rank has its peers
    kRunning,
    kFailed,
    kStopped,
  };

  // ---- messages of workers; each takes the lock, then delivers what came of it ----

  void Handle(const Worker& worker, v1::WorkerMessage message) {
    absl::StatusOr<StepResult> result = absl::NotFoundError("");
    if (message.has_step_done() && !message.step_done().result().empty()) {
      result = DecodeStepResult(message.step_done().result());
    }
    {
      std::lock_guard lock(mutex_);
      const int rank = RankOf(worker);
      if (rank < 0) {
        Welcome(worker, message);
      } else {
        slots_[rank].last_heard = absl::Now();
        Dispatch(rank, message, std::move(result));
      }
    }
    events_.Deliver();
  }

  void HandleClosed(const Worker& worker, const absl::Status& status) {
    {
      std::lock_guard lock(mutex_);
      const int rank = RankOf(worker);
      if (rank >= 0) Lose(rank, Kind::kWorkerLost, status);
    }
    events_.Deliver();
  }

  int RankOf(const Worker& worker) const {
    for (size_t rank = 0; rank < slots_.size(); ++rank) {
      if (slots_[rank].worker == worker) return static_cast<int>(rank);
    }
    return -1;
  }

  void Welcome(const Worker& worker, const v1::WorkerMessage& message) {
    if (!message.has_hello()) {  // or it was given up
      return worker->Close(absl::InvalidArgumentError("a worker's first message is hello"));
    }
    if (phase_ == Phase::kFailed || phase_ == Phase::kStopped) {
      return worker->Close(absl::UnavailableError("the cluster has ended"));
    }
    const v1::Hello& hello = message.hello();
    const absl::StatusOr<int> rank = membership_.Join(IdentityOf(hello));
    if (!rank.ok()) {
      Log(Kind::kWorkerRefused, absl::StrCat("refused a worker at ", worker->peer(), ": ", rank.status().message()));
      worker->Close(rank.status());
      // A machine that cannot take part in this run, while the run takes shape: no later one will help.
      if (absl::IsUnimplemented(rank.status()) && epoch_ == 0) FailLocked(rank.status());
      return;
    }
    slots_[*rank].Occupy(worker, hello, absl::Now());
    Log(Kind::kWorkerJoined, absl::StrCat(membership_.Name(*rank), " joined from ", worker->peer()), *rank);
    ConfigureIfComplete();
  }

  void Dispatch(int rank, const v1::WorkerMessage& message, absl::StatusOr<StepResult> result) {
    RankSlot& slot = slots_[rank];
    switch (message.message_case()) {
      case v1::WorkerMessage::kProgress:
        if (message.progress().epoch() != epoch_ || message.progress().bytes_total() <= 0) return;
        slot.last_progress = absl::Now();
        slot.info.load_fraction =
            std::min(1.0, static_cast<double>(message.progress().bytes_done()) /
                              static_cast<double>(message.progress().bytes_total()));
        return;
      case v1::WorkerMessage::kLoaded:
        // Weights stay from epoch to epoch, so this is news even when the epoch has ended meanwhile.
        slot.has_weights = true;
        slot.info.weight_bytes = message.loaded().weight_bytes();
        slot.info.load_fraction = 1;
        if (message.loaded().epoch() != epoch_ || phase_ != Phase::kLoading) return;
        slot.loaded = true;
        Log(Kind::kWeightsLoaded,
            absl::StrCat(membership_.Name(rank), message.loaded().kept() ? " kept" : " loaded", " its weights"), rank);
        return ConnectIfLoaded();
      case v1::WorkerMessage::kReady:
        if (message.ready().epoch() != epoch_ || phase_ != Phase::kConnecting) return;
        slot.connected = true;
        slot.info.state = "ready";
        return RunIfConnected();
      case v1::WorkerMessage::kStepDone:
        return HandleStepDone(rank, message.step_done(), std::move(result));
      case v1::WorkerMessage::kFailure:
        return HandleFailure(rank, message.failure());
      case v1::WorkerMessage::kHeartbeat:
        if (slot.TakeHeartbeat(message.heartbeat(), epoch_)) steps_.NoteProgress(absl::Now());
        return;
      case v1::WorkerMessage::kHello:
      case v1::WorkerMessage::MESSAGE_NOT_SET:
        return GiveUp(rank, absl::InvalidArgumentError("sent a message that makes no sense"));
    }
  }

  void HandleStepDone(int rank, const v1::StepDone& done, absl::StatusOr<StepResult> result) {
    RankSlot& slot = slots_[rank];
    ++slot.info.steps;
    if (done.epoch() != epoch_ || phase_ != Phase::kRunning) return;
    ++slot.epoch_steps;
    if (rank != options_.mesh.RankOf(options_.mesh.pp - 1, 0)) return;
    if (!result.ok() || !steps_.IsDue(result->step) || result->epoch != epoch_) {
      return GiveUp(rank, absl::InternalError(absl::StrCat("sent a result of step ", done.step(), " that is not due: ",
                                                           result.status().message())));
    }
    steps_.Finish(absl::Now());
    fruitless_epochs_ = 0;
    Post(*std::move(result));
  }

  void HandleFailure(int rank, const v1::Failure& failure) {
    if (failure.epoch() != epoch_) return;
    const absl::Status status(static_cast<absl::StatusCode>(failure.code()), failure.message());
    Log(Kind::kRankFailed, absl::StrCat(membership_.Name(rank), " failed: ", failure.message()), rank);
    if (phase_ == Phase::kLoading) slots_[rank].has_weights = false;
    if ((phase_ == Phase::kLoading || phase_ == Phase::kConnecting) &&
        !IsTransient(status.code())) {
      return FailLocked(status);
    }
    // It tells of a peer, more often than not; of which one, the ranks' progress says better.
    if (phase_ == Phase::kRunning && absl::IsDeadlineExceeded(status)) return BreakStall(status);
    LoseEpoch(status, {});
  }

  // ---- epochs; REQUIRES: mutex_ is held ----

  void ConfigureIfComplete() {
    if (phase_ != Phase::kGathering || !membership_.complete()) return;
    if (absl::Now() < settled_at_) return;
    arithmetic_ = membership_.FixArithmetic();
    std::vector<RankBytes> to_load;
    for (const RankBytes& bytes : needs_) {
      if (!slots_[bytes.rank].has_weights) to_load.push_back(bytes);
    }
    if (absl::Status status = membership_.CheckMemory(to_load); !status.ok())
      return FailLocked(std::move(status));
    ++epoch_;
    phase_ = Phase::kLoading;
    store_.Begin(epoch_);
    for (RankSlot& slot : slots_) {
      slot.BeginEpoch(absl::Now());
      slot.worker->Send(ConfigureMessage(options_, {.epoch = epoch_,
                                                    .rank = slot.info.rank,
                                                    .arithmetic = arithmetic_,
                                                    .fingerprint = config_.Fingerprint()}));
    }
  }

  void ConnectIfLoaded() {
    if (!std::all_of(slots_.begin(), slots_.end(), [](const RankSlot& slot) { return slot.loaded; }))
      return;
    phase_ = Phase::kConnecting;
    const CoordinatorMessagePtr message = ConnectMessage(epoch_);
    for (RankSlot& slot : slots_) {
      slot.last_progress = absl::Now();
      slot.worker->Send(message);
    }
  }

  void RunIfConnected() {
    if (!std::all_of(slots_.begin(), slots_.end(), [](const RankSlot& slot) { return slot.connected; }))
      return;
    phase_ = Phase::kRunning;
    steps_.BeginEpoch();
    const bool recurrent = config_.num_layers_of(MixerKind::kGatedDeltaNet) > 0;
    Log(Kind::kEpochReady, absl::StrCat("epoch ", epoch_, " is ready, arithmetic ", arithmetic_));
    Post(RunnerReady{
        .epoch = epoch_,
        .capacity = {.num_blocks = (options_.limits.max_tokens + kGridTokens - 1) / kGridTokens,
                     .num_state_slots = recurrent ? options_.limits.num_state_slots() : 0,
                     .max_step_tokens = options_.limits.max_step_tokens,
                     .pipeline_stages = options_.mesh.pp}});
  }

  // The epoch is over; workers that are left keep their weights.
  void LoseEpoch(const absl::Status& reason, std::vector<ClusterFault::Culprit> culprits) {
    if (phase_ != Phase::kLoading && phase_ != Phase::kConnecting && phase_ != Phase::kRunning) {
      // A rank told of its peer's end before the peer's own link had ended.
      if (last_fault_ && last_fault_->culprits.empty()) last_fault_->culprits = std::move(culprits);
      return;
    }
    ++num_faults_;
    last_fault_ = {.culprits = std::move(culprits), .reason = std::string(reason.message()), .at = absl::Now()};
    Log(Kind::kEpochLost, absl::StrCat("epoch ", epoch_, " is lost: ", reason.message()));
    if (phase_ == Phase::kRunning) Post(RunnerLost{.epoch = epoch_, .reason = reason});
    if (phase_ != Phase::kRunning || (steps_.num_submitted() > 0 && steps_.num_done() == 0))
      ++fruitless_epochs_;
    if (fruitless_epochs_ > options_.max_fruitless_epochs) {
      return FailLocked(absl::Status(
          reason.code(), absl::StrCat(fruitless_epochs_, " epochs in a row came to nothing; the last: ", reason.message())));
    }
    phase_ = Phase::kGathering;
    gather_deadline_ = absl::Now() + options_.rejoin_timeout;
    settled_at_ = membership_.complete() ? absl::Now() + kSettleTime : absl::InfinitePast();
    ticker_->Wake();  // to wait no longer than that
    store_.Begin(epoch_ + 1);
    const CoordinatorMessagePtr message = AbortMessage(epoch_, std::string(reason.message()));
    for (RankSlot& slot : slots_) {
      if (slot.worker == nullptr) continue;
      slot.info.state = "loading";
      slot.worker->Send(message);
    }
    ConfigureIfComplete();
  }

  // The worker of this rank has gone.
  void Lose(int rank, Kind kind, const absl::Status& status) {
    const absl::Status reason(status.code(), absl::StrCat(membership_.Name(rank), ": ", status.message()));
    const ClusterFault::Culprit culprit = slots_[rank].AsCulprit();
    Log(kind,
        absl::StrCat("lost ", reason.message(), culprit.operation.empty() ? "" : "; last seen ", culprit.operation),
        rank);
    slots_[rank].Vacate();
    membership_.Leave(rank);
    LoseEpoch(reason, {culprit});
  }

  // The worker of this rank may live, but is of no use.
  void GiveUp(int rank, const absl::Status& status) {
    slots_[rank].worker->Drop();
    if (options_.on_given_up) {
      events_.Post([this, rank, pid = slots_[rank].info.pid] { options_.on_given_up(rank, pid); });
    }
    Lose(rank, Kind::kWorkerGivenUp, status);
  }

  void FailLocked(absl::Status reason) {
    if (phase_ == Phase::kFailed || phase_ == Phase::kStopped) return;
    Log(Kind::kClusterFailed, absl::StrCat("the cluster has failed: ", reason.message()));
    phase_ = Phase::kFailed;
    store_.Begin(epoch_ + 1);
    SendHome(std::string(reason.message()));
    Post(RunnerLost{.epoch = epoch_, .reason = std::move(reason), .fatal = true});
  }

  void SendHome(const std::string& reason) {
    const CoordinatorMessagePtr message = ShutdownMessage(reason);
    for (RankSlot& slot : slots_) {
      if (slot.worker == nullptr) continue;
      slot.worker->Send(message);
      slot.worker->Close(absl::OkStatus());
      slot.worker = nullptr;
      slot.info.state = "absent";
    }
  }

  // ---- what time brings ----

  // Until the next one.
  absl::Duration Tick() {
    absl::Duration wait = kTick;
    {
      std::lock_guard lock(mutex_);
      const absl::Time now = absl::Now();
      CheckTimes(now);
      if (settled_at_ > now) wait = std::min(wait, settled_at_ - now);
    }
    events_.Deliver();
    return wait;
  }

  void CheckTimes(absl::Time now) {
    const absl::Duration pause = now - last_tick_;
    last_tick_ = now;
    if (pause > kPauseThreshold) {
      for (RankSlot& slot : slots_) slot.last_heard += pause, slot.last_progress += pause;
      steps_.Excuse(pause);
    }
    for (int rank = 0; rank < options_.mesh.size(); ++rank) CheckAlive(rank, now);
    if (phase_ == Phase::kRunning) {
      if (const absl::Status moves = steps_.CheckMoves(now); !moves.ok()) BreakStall(moves);
    }
    if (phase_ != Phase::kGathering) return;
    ConfigureIfComplete();
    if (phase_ == Phase::kGathering && now > gather_deadline_) {
      FailLocked(absl::DeadlineExceededError(absl::StrCat(
          "no worker came for rank ", absl::StrJoin(membership_.missing(), ", "), " within ",
          absl::FormatDuration(epoch_ == 0 ? options_.join_timeout : options_.rejoin_timeout))));
    }
  }

  void CheckAlive(int rank, absl::Time now) {
    const RankSlot& slot = slots_[rank];
    if (slot.worker == nullptr) return;
    const absl::Status alive = slot.CheckAlive(
        now,
        {.heartbeat = options_.heartbeat_timeout,
         .load = phase_ == Phase::kLoading ? options_.load_timeout : absl::InfiniteDuration(),
         .connect = phase_ == Phase::kConnecting ? kConnectTimeout : absl::InfiniteDuration()});
    if (!alive.ok()) GiveUp(rank, alive);
  }

  // Ends the epoch, without the rank that the others wait for when it is one.
  void BreakStall(const absl::Status& symptom) {
    const absl::Time now = absl::Now();
    std::vector<StalledRank> ranks;
    for (const RankSlot& slot : slots_) {
      ranks.push_back(slot.AsStalled(membership_.Name(slot.info.rank), steps_.num_submitted(), now));
    }
    const std::vector<int> behind = FindCulprits(options_.mesh, ranks);
    std::vector<ClusterFault::Culprit> culprits;
    for (int rank : behind) culprits.push_back(slots_[rank].AsCulprit());
    const absl::Status status(symptom.code(), absl::StrCat(symptom.message(), "; ", DescribeStall(ranks, behind)));
    if (behind.size() == 1) return GiveUp(behind[0], status);
    LoseEpoch(status, std::move(culprits));
  }

  // The listener is set when events are delivered, and not before.
  void Post(RunnerEvent event) {
    events_.Post([this, event = std::move(event)]() mutable { listener_(std::move(event)); });
  }
  void Log(Kind kind, std::string text, int rank = -1) {
    if (!options_.on_event) return;
    ClusterEvent event{.kind = kind, .text = std::move(text), .epoch = epoch_, .rank = rank};
    if (rank >= 0) {
      event.host = slots_[rank].info.host;
      event.pid = slots_[rank].info.pid;
    }
    events_.Post([this, event = std::move(event)] { options_.on_event(event); });
  }

  const ClusterOptions options_;
  const ModelConfig config_;
  const std::vector<RankBytes> needs_;

  mutable std::mutex mutex_;
  Membership membership_;
  std::vector<RankSlot> slots_;  // by rank
  EpochStore store_;
  uint64_t num_faults_ = 0;
  std::optional<ClusterFault> last_fault_;
  Phase phase_ = Phase::kGathering;
  uint64_t epoch_ = 0;  // of the last Configure
  std::string arithmetic_;
  StepsInFlight steps_;
  int fruitless_epochs_ = 0;
  absl::Time gather_deadline_;
  absl::Time settled_at_ = absl::InfinitePast();
  absl::Time last_tick_;
  std::function<void(RunnerEvent)> listener_;  // set once
  EventQueue events_;                          // delivered out of mutex_

  std::unique_ptr<Ticker> ticker_;
  std::unique_ptr<WorkerLinkServer> server_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Cluster>> Cluster::Create(ClusterOptions options) {
  PL_ASSIGN_OR_RETURN(ModelConfig config, ParseModelConfig(options.config_json));
  if (options.num_layers > 0) config = WithLayers(std::move(config), options.num_layers);
  PL_ASSIGN_OR_RETURN(const ShardPlan plan, ShardPlan::Make(config, options.mesh));
  auto cluster = std::make_unique<ClusterImpl>(std::move(options), std::move(config), plan);
  PL_RETURN_IF_ERROR(cluster->Listen());
  return cluster;
}

}  // namespace plumbline
