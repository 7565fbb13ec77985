#include "coordinator/api/grpc_service.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/resource_quota.h>

#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "coordinator/api/grpc_access.h"
#include "coordinator/api/grpc_inference.h"
#include "coordinator/api/grpc_trace.h"
#include "coordinator/api/readiness.h"
#include "proto/cluster.grpc.pb.h"
#include "proto/grpc_credentials.h"
#include "proto/inference.grpc.pb.h"
#include "proto/status.h"
#include "proto/training.grpc.pb.h"

namespace plumbline {
namespace {

constexpr auto kPollInterval = std::chrono::milliseconds(100);
constexpr int kMaxThreads = 32;  // of the services that block: Cluster, Training, reflection

class TrainingService final : public v1::Training::Service {
 public:
  explicit TrainingService(RequestTracker* requests) : requests_(*requests) {}

 private:
  grpc::Status NotSupported(grpc::ServerContext& context, const char* method) {
    return EndTrace(*BeginTrace(requests_, context, method),
                    {grpc::StatusCode::UNIMPLEMENTED, "this server does not fine-tune yet"});
  }
  grpc::Status CreateJob(grpc::ServerContext* context, const v1::CreateJobRequest*, v1::Job*) override {
    return NotSupported(*context, "Training.CreateJob");
  }
  grpc::Status WatchJob(grpc::ServerContext* context, const v1::WatchJobRequest*,
                        grpc::ServerWriter<v1::JobEvent>*) override {
    return NotSupported(*context, "Training.WatchJob");
  }
  grpc::Status CancelJob(grpc::ServerContext* context, const v1::CancelJobRequest*, v1::Job*) override {
    return NotSupported(*context, "Training.CancelJob");
  }
  grpc::Status ListJobs(grpc::ServerContext* context, const v1::ListJobsRequest*,
                        v1::ListJobsResponse*) override {
    return NotSupported(*context, "Training.ListJobs");
  }

  RequestTracker& requests_;
};

class ClusterService final : public v1::Cluster::Service {
 public:
  explicit ClusterService(const GrpcServerOptions& options) : options_(options) {}

  grpc::Status Status(grpc::ServerContext* context, const v1::StatusRequest*,
                      v1::StatusResponse* response) override {
    const auto trace = BeginTrace(*options_.requests, *context, "Cluster.Status");
    const absl::StatusOr<Caller> caller = Authenticate(options_.access, *context);
    if (!caller.ok()) return EndTrace(*trace, ToGrpc(caller.status()));
    trace->SetCaller(*caller);
    FillStatus(*response);
    return EndTrace(*trace, grpc::Status::OK);
  }

  // Begins at once and stays begun; the call lasts until the last request is done or the caller
  // gives up.
  grpc::Status Drain(grpc::ServerContext* context, const v1::DrainRequest*,
                     v1::DrainResponse*) override {
    const auto trace = BeginTrace(*options_.requests, *context, "Cluster.Drain");
    return EndTrace(*trace, DrainEngine(*context, *trace));
  }

 private:
  void FillStatus(v1::StatusResponse& response) const {
    const EngineStats stats = options_.engine->Stats();
    response.set_model(options_.model->name);
    response.set_ready(Readiness(stats).ok());
    response.set_draining(stats.draining);
    response.set_running(static_cast<int32_t>(stats.running));
    response.set_queued(static_cast<int32_t>(stats.queued));
    response.set_epoch(stats.epoch);
    if (options_.cluster == nullptr) return;
    const ClusterSnapshot snapshot = options_.cluster->Snapshot();
    response.set_epoch(snapshot.epoch);
    response.set_tp(snapshot.tp);
    response.set_pp(snapshot.pp);
    response.set_arithmetic(snapshot.arithmetic);
    for (const RankInfo& from : snapshot.ranks) {
      v1::RankStatus& to = *response.add_ranks();
      to.set_rank(from.rank);
      to.set_stage(from.stage);
      to.set_tp_index(from.tp_index);
      to.set_first_layer(from.first_layer);
      to.set_last_layer(from.last_layer);
      to.set_host(from.host);
      to.set_pid(from.pid);
      to.set_state(from.state);
      to.set_steps(from.steps);
      to.set_weight_bytes(from.weight_bytes);
      to.set_rss_bytes(from.rss_bytes);
      to.set_load_fraction(from.load_fraction);
      to.set_operation(from.operation);
    }
  }

  grpc::Status DrainEngine(const grpc::ServerContext& context, RequestTrace& trace) const {
    const absl::StatusOr<Caller> caller = Authenticate(options_.access, context);
    if (!caller.ok()) return ToGrpc(caller.status());
    trace.SetCaller(*caller);
    if (!caller->is_operator()) {
      return {grpc::StatusCode::PERMISSION_DENIED,
              "draining needs the operator's key, that of --api-key-file"};
    }
    while (!options_.engine->Drain(absl::Now() + absl::FromChrono(kPollInterval))) {
      if (context.IsCancelled()) {
        return {grpc::StatusCode::DEADLINE_EXCEEDED, "draining goes on; requests are under way"};
      }
    }
    return grpc::Status::OK;
  }

  const GrpcServerOptions options_;
};

class PublicServer final : public GrpcServer {
 public:
  explicit PublicServer(const GrpcServerOptions& options)
      : options_(options),
        cluster_(options),
        training_(options.requests),
        inference_(MakeInferenceService({.engine = options.engine,
                                         .model = options.model,
                                         .cluster = options.cluster,
                                         .requests = options.requests,
                                         .access = options.access,
                                         .gate = &gate_})) {}

  ~PublicServer() override { Stop(absl::InfinitePast()); }

  absl::Status Listen() {
    static std::once_flag once;
    std::call_once(once, [] {
      grpc::EnableDefaultHealthCheckService(true);
      grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    });
    grpc::ServerBuilder builder;
    // Without this a second server on a taken port would start, and get half of the connections.
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    builder.AddListeningPort(options_.address, ServerCredentialsOf(options_.tls), &port_);
    builder.SetMaxReceiveMessageSize(options_.max_message_bytes);
    builder.SetResourceQuota(grpc::ResourceQuota("public").SetMaxThreads(kMaxThreads));
    builder.RegisterService(inference_.get());
    builder.RegisterService(&cluster_);
    builder.RegisterService(&training_);
    for (grpc::Service* service : options_.other_services) builder.RegisterService(service);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr || port_ == 0) {
      return absl::UnavailableError(absl::StrCat("cannot listen on ", options_.address,
                                                 " for gRPC: the address is in use or not ours"));
    }
    ShowReadiness();
    health_ = std::thread([this] { WatchReadiness(); });
    return absl::OkStatus();
  }

  uint16_t port() const override { return static_cast<uint16_t>(port_); }

  void Stop(absl::Time deadline) override {
    if (server_ == nullptr) return;
    gate_.is_open = false;
    if (health_.joinable()) {
      {
        const std::lock_guard lock(mutex_);
        is_stopping_ = true;
      }
      changed_.notify_all();
      health_.join();
      server_->GetHealthCheckService()->Shutdown();
    }
    // Not Shutdown(deadline): it would wait for clients that watch the health of this server for
    // ever.
    while (gate_.num_active > 0 && absl::Now() < deadline)
      std::this_thread::sleep_for(kPollInterval);
    server_->Shutdown(std::chrono::system_clock::now());
    server_->Wait();
    server_.reset();
  }

 private:
  void ShowReadiness() {
    server_->GetHealthCheckService()->SetServingStatus(
        v1::Inference::service_full_name(),
        Readiness(options_.engine->Stats()).ok());
  }

  void WatchReadiness() {
    std::unique_lock lock(mutex_);
    while (!changed_.wait_for(lock, kPollInterval, [this] { return is_stopping_; })) {
      ShowReadiness();
    }
  }

  const GrpcServerOptions options_;
  CallGate gate_;
  ClusterService cluster_;
  TrainingService training_;
  const std::unique_ptr<grpc::Service> inference_;
  std::unique_ptr<grpc::Server> server_;
  int port_ = 0;

  std::thread health_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool is_stopping_ = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Start(const GrpcServerOptions& options) {
  auto server = std::make_unique<PublicServer>(options);
  if (absl::Status status = server->Listen(); !status.ok()) return status;
  return server;
}

}  // namespace plumbline
