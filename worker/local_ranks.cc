#include "worker/local_ranks.h"

#include <condition_variable>
#include <deque>
#include <future>
#include <memory>
#include <mutex>
#include <thread>

#include "absl/strings/str_cat.h"
#include "parallel/communicator.h"
#include "proto/status.h"
#include "worker/model/stage.h"

namespace plumbline {
namespace {

constexpr absl::Duration kCallTimeout = absl::Minutes(10);  // of one collective: a rank may be loading or computing

struct SubmittedStep {
  StepPlan plan;
  LocalRanks::Done done;  // set for the rank that reports
};

// One rank: a thread with a queue of steps.
struct RankThread {
  std::unique_ptr<WeightSource> source;
  std::unique_ptr<Communicator> tp, pp;
  std::unique_ptr<Stage> stage;
  std::mutex mutex;
  std::condition_variable wake;
  std::deque<SubmittedStep> queue;
  bool stopping = false;
  std::thread thread;
};

class LocalRanksImpl final : public LocalRanks {
 public:
  explicit LocalRanksImpl(Options options) : options_(std::move(options)) {}

  ~LocalRanksImpl() override {
    for (auto& rank : ranks_) {
      {
        std::lock_guard lock(rank->mutex);
        rank->stopping = true;
      }
      rank->wake.notify_one();
    }
    for (auto& rank : ranks_) {
      if (rank->thread.joinable()) rank->thread.join();
    }
  }

  absl::Status Load() {
    PL_ASSIGN_OR_RETURN(plan_, ShardPlan::Make(options_.config, options_.mesh));
    const int size = options_.mesh.size();
    for (int r = 0; r < size; ++r) ranks_.push_back(std::make_unique<RankThread>());
    if (options_.transport == Options::Transport::kThreads) ConnectThreads();
    std::vector<absl::Status> statuses(size);
    std::vector<std::thread> loaders;
    const std::unique_ptr<RendezvousStore> store = MakeInProcessStore();
    for (int r = 0; r < size; ++r) {
      loaders.emplace_back([&, r] { statuses[r] = LoadRank(r, *store); });
    }
    for (std::thread& loader : loaders) loader.join();
    for (int r = 0; r < size; ++r) {
      if (!statuses[r].ok()) return statuses[r];
    }
    for (int r = 0; r < size; ++r) ranks_[r]->thread = std::thread([this, r] { RunRank(r); });
    return absl::OkStatus();
  }

  void Submit(StepPlan plan, Done done) override {
    const Mesh& mesh = options_.mesh;
    const int reporter = mesh.RankOf(mesh.pp - 1, 0);
    std::lock_guard order(submit_mutex_);  // the same order on every rank
    for (int r = 0; r < mesh.size(); ++r) {
      {
        std::lock_guard lock(ranks_[r]->mutex);
        ranks_[r]->queue.push_back({plan, r == reporter ? done : nullptr});
      }
      ranks_[r]->wake.notify_one();
    }
  }

  int64_t num_blocks() const override { return ranks_[0]->stage->limits().num_blocks; }
  int64_t num_state_slots() const override { return ranks_[0]->stage->limits().num_state_slots; }
  int64_t weight_bytes(int rank) const override { return ranks_[rank]->stage->weight_bytes(); }

 private:
  void ConnectThreads() {
    const Mesh& mesh = options_.mesh;
    for (int stage = 0; stage < mesh.pp; ++stage) {
      auto group = MakeLocalGroup(mesh.tp, kCallTimeout);
      for (int i = 0; i < mesh.tp; ++i) ranks_[mesh.RankOf(stage, i)]->tp = std::move(group[i]);
    }
    for (int i = 0; i < mesh.tp; ++i) {
      auto group = MakeLocalGroup(mesh.pp, kCallTimeout);
      for (int stage = 0; stage < mesh.pp; ++stage) {
        ranks_[mesh.RankOf(stage, i)]->pp = std::move(group[stage]);
      }
    }
  }

  absl::Status ConnectAsProcesses(int r, RendezvousStore& store) {
    const auto transport =
        options_.transport == Options::Transport::kGloo ? ProcessTransport::kGloo : ProcessTransport::kShm;
    const Mesh& mesh = options_.mesh;
    const int stage = mesh.StageOf(r), tp_index = mesh.TpIndexOf(r);
    GroupMember member = {.rank = tp_index,
                          .size = mesh.tp,
                          .group = absl::StrCat("tp/", stage),
                          .bind_address = "127.0.0.1",
                          .timeout = kCallTimeout};
    PL_ASSIGN_OR_RETURN(ranks_[r]->tp, ConnectProcesses(member, transport, store));
    member = {.rank = stage,
              .size = mesh.pp,
              .group = absl::StrCat("pp/", tp_index),
              .bind_address = "127.0.0.1",
              .timeout = kCallTimeout};
    PL_ASSIGN_OR_RETURN(ranks_[r]->pp, ConnectProcesses(member, transport, store));
    return absl::OkStatus();
  }

  absl::Status LoadRank(int r, RendezvousStore& store) {
    RankThread& rank = *ranks_[r];
    PL_ASSIGN_OR_RETURN(rank.source, options_.open_weights(plan_));
    PL_ASSIGN_OR_RETURN(Backend backend, options_.make_backend());
    Stage::Options stage_options = {.config = options_.config,
                                    .mesh = options_.mesh,
                                    .rank = r,
                                    .limits = options_.limits,
                                    .compute_dtype = options_.compute_dtype,
                                    .on_progress = {},
                                    .cache_dir = options_.cache_dir,
                                    .on_line = {},
                                    .gather_bytes = options_.gather_bytes};
    if (options_.on_progress) {
      stage_options.on_progress = [this, r](int64_t bytes) { options_.on_progress(r, bytes); };
    }
    if (options_.on_line) {
      stage_options.on_line = [this, r](const std::string& line) { options_.on_line(r, line); };
    }
    PL_ASSIGN_OR_RETURN(rank.stage, Stage::Load(std::move(stage_options), std::move(backend), *rank.source));
    if (options_.transport != Options::Transport::kThreads) PL_RETURN_IF_ERROR(ConnectAsProcesses(r, store));
    rank.stage->Connect({.tp = rank.tp.get(), .pp = rank.pp.get()});
    return absl::OkStatus();
  }

  void RunRank(int r) {
    RankThread& rank = *ranks_[r];
    while (true) {
      SubmittedStep step;
      {
        std::unique_lock lock(rank.mutex);
        rank.wake.wait(lock, [&] { return rank.stopping || !rank.queue.empty(); });
        if (rank.queue.empty()) return;
        step = std::move(rank.queue.front());
        rank.queue.pop_front();
      }
      absl::StatusOr<StepResult> result = rank.stage->Forward(step.plan);
      // A bad plan is refused by every rank alike and harms nothing; a transport error ends the groups.
      if (!result.ok() && !absl::IsInvalidArgument(result.status())) AbortAll(result.status());
      if (step.done) step.done(std::move(result));
    }
  }

  void AbortAll(const absl::Status& reason) {
    for (auto& rank : ranks_) {
      rank->tp->Abort(reason);
      rank->pp->Abort(reason);
    }
  }

  Options options_;
  ShardPlan plan_;
  std::vector<std::unique_ptr<RankThread>> ranks_;
  std::mutex submit_mutex_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<LocalRanks>> LocalRanks::Start(Options options) {
  auto ranks = std::make_unique<LocalRanksImpl>(std::move(options));
  PL_RETURN_IF_ERROR(ranks->Load());
  return ranks;
}

absl::StatusOr<StepResult> LocalRanks::Run(StepPlan plan) {
  const auto outcome = std::make_shared<std::promise<absl::StatusOr<StepResult>>>();
  Submit(std::move(plan), [outcome](absl::StatusOr<StepResult> result) { outcome->set_value(std::move(result)); });
  return outcome->get_future().get();
}

}  // namespace plumbline
