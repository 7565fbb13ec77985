#include "worker/rank_worker.h"

#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <deque>
#include <mutex>
#include <optional>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/backend.h"
#include "parallel/step_codec.h"
#include "proto/cluster.pb.h"
#include "proto/status.h"
#include "worker/epoch_links.h"
#include "worker/held_stage.h"
#include "worker/host_facts.h"
#include "worker/worker_link.h"

namespace plumbline {
namespace {

constexpr absl::Duration kHeartbeatInterval = absl::Milliseconds(500);
constexpr absl::Duration kPulseInterval = absl::Milliseconds(100);
constexpr absl::Duration kProgressInterval = absl::Milliseconds(100);
constexpr absl::Duration kEndPatience = absl::Milliseconds(1500);  // to stop in good order
constexpr absl::Duration kAbortPatience = absl::Seconds(15);  // to come back from an aborted step

// Four threads: the link's delivers commands; the caller's of Run computes; the closer ends
// connections of epochs that are over, which frees the compute thread at once but takes a while
// where a peer is dead; the pulse tells that the process lives, and ends it when it must go and the
// compute thread does not come back.
class RankWorker {
 public:
  explicit RankWorker(RankWorkerOptions options)
      : options_(std::move(options)), held_(options_.cache_dir) {}

  absl::Status Run() {
    PL_RETURN_IF_ERROR(Attach());
    std::thread pulse([this] { Pulse(); }), closer([this] { CloseRetired(); });
    Compute();
    {
      std::lock_guard lock(mutex_);
      RetireLocked(std::move(links_), absl::CancelledError("the worker ends"));
      computed_ = true;
    }
    closer.join();
    {
      std::lock_guard lock(mutex_);
      finished_ = true;
    }
    changed_.notify_all();
    pulse.join();
    link_.reset();
    if (!end_->ok()) {
      return absl::Status(end_->code(), absl::StrCat(Name(), ": coordinator at ",
                                                     options_.coordinator, ": ", end_->message()));
    }
    return absl::OkStatus();
  }

 private:
  absl::Status Attach() {
    if (options_.bind_address.empty()) {
      PL_ASSIGN_OR_RETURN(options_.bind_address, LocalAddressTowards(options_.coordinator));
    }
    v1::Hello hello;
    hello.set_build(options_.build);
    hello.set_host(HostName());
    hello.set_pid(getpid());
    for (const std::string& name : CpuArithmetics()) hello.add_arithmetics(name);
    hello.add_arithmetics("reference-1");
    hello.set_host_memory_bytes(AvailableMemoryBytes());
    hello.set_memory_bytes(options_.memory_limit_bytes > 0 ? options_.memory_limit_bytes
                                                           : hello.host_memory_bytes());
    hello.set_wanted_rank(options_.wanted_rank);
    hello.set_address(options_.bind_address);
    auto link = WorkerLink::Dial(
        {.coordinator = options_.coordinator,
         .join_token = options_.join_token,
         .tls = options_.tls,
         .connect_timeout = options_.connect_timeout},
        hello,
        {.on_message = [this](const v1::CoordinatorMessage& message) { Handle(message); },
         .on_closed = [this](absl::Status status) { End(std::move(status)); }});
    PL_RETURN_IF_ERROR(link.status());
    std::lock_guard lock(mutex_);
    link_ = *std::move(link);
    changed_.notify_all();
    return absl::OkStatus();
  }

  // ---- the link's thread ----

  void Handle(const v1::CoordinatorMessage& message) {
    switch (message.message_case()) {
      case v1::CoordinatorMessage::kConfigure:
        AbandonEpochsBefore(message.configure().epoch(), "a new epoch begins");
        Enqueue(message);
        break;
      case v1::CoordinatorMessage::kConnect:
      case v1::CoordinatorMessage::kStepPlan:
        Enqueue(message);
        break;
      case v1::CoordinatorMessage::kAbort:
        AbandonEpochsBefore(message.abort().epoch() + 1, message.abort().reason());
        break;
      case v1::CoordinatorMessage::kShutdown:
        End(absl::OkStatus());
        break;
      case v1::CoordinatorMessage::MESSAGE_NOT_SET:
        break;
    }
  }

  void Enqueue(const v1::CoordinatorMessage& message) {
    {
      std::lock_guard lock(mutex_);
      inbox_.push_back(message);
    }
    changed_.notify_all();
  }

  // Commands that wait belong to epochs that are over; the compute thread is set free from a
  // collective.
  void AbandonEpochsBefore(uint64_t epoch, const std::string& reason) {
    std::lock_guard lock(mutex_);
    if (epoch <= first_live_epoch_) return;
    first_live_epoch_ = epoch;
    abandoned_at_ = absl::Now();
    inbox_.clear();
    RetireLocked(links_, absl::CancelledError(reason));
  }

  void End(absl::Status status) {
    std::lock_guard lock(mutex_);
    if (end_) return;
    end_ = std::move(status);
    ended_at_ = absl::Now();
    RetireLocked(links_, absl::CancelledError("the worker ends"));
    changed_.notify_all();
  }

  // ---- the closer ----

  struct Retired {
    std::shared_ptr<EpochLinks> links;
    absl::Status reason;
  };

  void Retire(std::shared_ptr<EpochLinks> links, absl::Status reason) {
    std::lock_guard lock(mutex_);
    RetireLocked(std::move(links), std::move(reason));
  }
  // REQUIRES: mutex_ is held.
  void RetireLocked(std::shared_ptr<EpochLinks> links, absl::Status reason) {
    if (links != nullptr) retired_.push_back({std::move(links), std::move(reason)});
    changed_.notify_all();
  }

  // Until the compute thread has ended and nothing is left.
  void CloseRetired() {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [this] { return !retired_.empty() || computed_; });
      if (retired_.empty()) return;
      Retired retired = std::move(retired_.front());
      retired_.pop_front();
      lock.unlock();
      retired.links->Interrupt(retired.reason);
      retired.links.reset();
      lock.lock();
    }
  }

  // ---- the pulse ----

  void Pulse() {
    absl::Time next_heartbeat = absl::Now();
    std::unique_lock lock(mutex_);
    while (!changed_.wait_for(lock, absl::ToChronoMilliseconds(kPulseInterval),
                              [this] { return finished_; })) {
      const absl::Time now = absl::Now();
      if (end_ && now - ended_at_ > kEndPatience) Leave("the rank does not stop");
      if (abortable_ && epoch_ < first_live_epoch_ && now - abandoned_at_ > kAbortPatience) {
        Leave(absl::StrCat("epoch ", epoch_, " was aborted, but step ", steps_ + 1,
                           " does not come back"));
      }
      if (now < next_heartbeat || end_) continue;
      next_heartbeat = now + kHeartbeatInterval;
      v1::WorkerMessage message;
      message.mutable_heartbeat()->set_epoch(epoch_);
      message.mutable_heartbeat()->set_steps(steps_);
      message.mutable_heartbeat()->set_rss_bytes(ResidentBytes());
      if (links_ != nullptr && links_->epoch() == epoch_) {
        const RankProgress progress = links_->progress().Get();
        v1::StepProgress& told = *message.mutable_heartbeat()->mutable_progress();
        told.set_step(progress.step);
        told.set_operation(static_cast<uint32_t>(progress.operation));
        told.set_collectives(progress.collectives);
        told.set_sends(progress.sends);
        told.set_receives(progress.receives);
      }
      link_->Send(std::move(message));
    }
  }

  // REQUIRES: mutex_ is held, so that nothing goes on meanwhile.
  [[noreturn]] void Leave(const std::string& reason) {
    const bool told_to = end_ && end_->ok();
    if (!told_to) {
      const std::string cause = end_ ? absl::StrCat(": ", end_->message()) : "";
      std::fprintf(stderr, "%s: %s%s\n", Name().c_str(), reason.c_str(), cause.c_str());
      std::fflush(stderr);
    }
    _exit(told_to ? 0 : 1);
  }

  // ---- the compute thread ----

  void Compute() {
    while (std::optional<v1::CoordinatorMessage> message = Next()) {
      absl::Status status;
      switch (message->message_case()) {
        case v1::CoordinatorMessage::kConfigure:
          status = Load(*message->mutable_configure());
          break;
        case v1::CoordinatorMessage::kConnect:
          status = Connect(message->connect().epoch());
          break;
        default:
          status = Step(message->step_plan());
      }
      std::lock_guard lock(mutex_);
      abortable_ = false;
      if (status.ok() || epoch_ < first_live_epoch_ || end_) continue;
      ReportFailure(status);
      RetireLocked(links_, status);
    }
  }

  // Nothing when the worker is to end.
  std::optional<v1::CoordinatorMessage> Next() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return end_ || !inbox_.empty(); });
    if (end_) return std::nullopt;
    v1::CoordinatorMessage message = std::move(inbox_.front());
    inbox_.pop_front();
    abortable_ = !message.has_configure();
    if (message.has_configure()) epoch_ = message.configure().epoch();
    return message;
  }

  // REQUIRES: mutex_ is held. The epoch has failed for this rank; its later steps are dropped.
  void ReportFailure(const absl::Status& status) {
    first_live_epoch_ = epoch_ + 1;
    abandoned_at_ = absl::Now();
    inbox_.clear();
    v1::WorkerMessage message;
    message.mutable_failure()->set_epoch(epoch_);
    message.mutable_failure()->set_code(status.raw_code());
    message.mutable_failure()->set_message(absl::StrCat(Name(), ": ", status.message()));
    link_->Send(std::move(message));
  }

  absl::Status Load(v1::Configure& configure) {
    rank_ = configure.rank();
    mesh_ = {.tp = configure.tp(), .pp = configure.pp()};
    call_timeout_ = absl::Milliseconds(configure.step_timeout_ms());
    PL_ASSIGN_OR_RETURN(transport_, ParseProcessTransport(configure.transport()));
    if (!options_.model_dir.empty()) configure.set_model_dir(options_.model_dir);
    if (options_.num_threads > 0) configure.set_num_threads(options_.num_threads);
    absl::Time next_report = absl::InfinitePast();
    PL_ASSIGN_OR_RETURN(const HeldStage::Outcome outcome,
                        held_.Hold(configure, [&](HeldStage::Progress progress) {
                          if (absl::Now() < next_report) return;
                          next_report = absl::Now() + kProgressInterval;
                          v1::WorkerMessage message;
                          message.mutable_progress()->set_epoch(configure.epoch());
                          message.mutable_progress()->set_bytes_done(progress.bytes_done);
                          message.mutable_progress()->set_bytes_total(progress.bytes_total);
                          link_->Send(std::move(message));
                        }));
    v1::WorkerMessage message;
    message.mutable_loaded()->set_epoch(configure.epoch());
    message.mutable_loaded()->set_weight_bytes(held_.stage()->weight_bytes());
    message.mutable_loaded()->set_kept(outcome == HeldStage::Outcome::kKept);
    link_->Send(std::move(message));
    return absl::OkStatus();
  }

  absl::Status Connect(uint64_t epoch) {
    if (held_.stage() == nullptr)
      return absl::InternalError("told to connect before it has loaded");
    // The stage lets go of the old communicators only when it is given new ones.
    std::shared_ptr<EpochLinks> old = links_;
    auto links =
        std::make_shared<EpochLinks>(EpochLinks::Options{.epoch = epoch,
                                                         .mesh = mesh_,
                                                         .rank = rank_,
                                                         .bind_address = options_.bind_address,
                                                         .call_timeout = call_timeout_,
                                                         .transport = transport_},
                                     link_->OpenStore());
    {
      std::lock_guard lock(mutex_);
      if (epoch < first_live_epoch_ || end_) return absl::CancelledError("the epoch is over");
      links_ = links;
    }
    const absl::Status status = links->Connect();
    if (!status.ok()) {
      std::lock_guard lock(mutex_);
      links_ = std::move(old);
      RetireLocked(std::move(links), status);
      return status;
    }
    held_.stage()->Connect(links->links());
    Retire(std::move(old), absl::CancelledError("a new epoch begins"));
    v1::WorkerMessage message;
    message.mutable_ready()->set_epoch(epoch);
    link_->Send(std::move(message));
    return absl::OkStatus();
  }

  absl::Status Step(const std::string& bytes) {
    PL_ASSIGN_OR_RETURN(const StepPlan plan, DecodeStepPlan(bytes));
    {
      std::lock_guard lock(mutex_);
      if (plan.epoch < first_live_epoch_)
        return absl::OkStatus();  // sent before the coordinator knew
    }
    if (links_ == nullptr || plan.epoch != links_->epoch()) {
      return absl::InternalError(
          absl::StrCat("step ", plan.step, " of epoch ", plan.epoch, ", which is not connected"));
    }
    links_->progress().BeginStep(plan.step);
    absl::StatusOr<StepResult> result = held_.stage()->Forward(plan);
    if (!result.ok()) {
      return absl::Status(result.status().code(),
                          absl::StrCat("step ", plan.step, ": ", result.status().message()));
    }
    links_->progress().EndStep();
    v1::WorkerMessage message;
    message.mutable_step_done()->set_epoch(plan.epoch);
    message.mutable_step_done()->set_step(plan.step);
    if (rank_ == mesh_.RankOf(mesh_.pp - 1, 0))
      message.mutable_step_done()->set_result(EncodeStepResult(*result));
    ++steps_;
    link_->Send(std::move(message));
    return absl::OkStatus();
  }

  std::string Name() const {
    const int rank = rank_;
    return rank < 0 ? "worker" : absl::StrCat("rank ", rank);
  }

  RankWorkerOptions options_;
  std::unique_ptr<WorkerLink> link_;
  std::atomic<int> rank_ = -1;
  std::atomic<uint64_t> steps_ = 0;

  // Of the compute thread.
  HeldStage held_;
  Mesh mesh_;
  absl::Duration call_timeout_;
  ProcessTransport transport_ = ProcessTransport::kAuto;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<v1::CoordinatorMessage> inbox_;
  uint64_t epoch_ = 0;             // of the last Configure that was begun
  uint64_t first_live_epoch_ = 0;  // earlier ones are over
  absl::Time abandoned_at_;
  bool abortable_ = false;             // at work that an abort must end
  std::shared_ptr<EpochLinks> links_;  // written by the compute thread
  std::deque<Retired> retired_;
  std::optional<absl::Status> end_;  // set once: OK when told to go
  absl::Time ended_at_;
  bool computed_ = false;  // the compute thread has ended
  bool finished_ = false;  // the closer, too
};

}  // namespace

absl::Status RunRankWorker(RankWorkerOptions options) {
  return RankWorker(std::move(options)).Run();
}

}  // namespace plumbline
