#include "coordinator/cluster/worker_link_server.h"

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <deque>
#include <mutex>
#include <optional>

#include "absl/strings/str_cat.h"
#include "coordinator/cluster/join_token.h"
#include "proto/cluster.grpc.pb.h"
#include "proto/grpc_credentials.h"
#include "proto/status.h"

namespace plumbline {
namespace {

constexpr int kMaxMessageBytes = 1 << 30;  // logits of a whole step, when somebody audits them
constexpr int kMaxAttached = 256;
// A worker that does not take its messages; a healthy one has a handful of steps in flight.
constexpr size_t kMaxQueuedMessages = 1024;
constexpr std::chrono::seconds kShutdownTime(1);

absl::Status CheckToken(const grpc::ServerContextBase& context, const std::string& expected) {
  const auto& metadata = context.client_metadata();
  const auto it = metadata.find("join-token");
  if (it != metadata.end() && SameToken(expected, {it->second.data(), it->second.size()}))
    return absl::OkStatus();
  return absl::UnauthenticatedError(it == metadata.end() ? "no join token was given"
                                                         : "the join token is wrong");
}

using ServerReactor = grpc::ServerBidiReactor<v1::WorkerMessage, v1::CoordinatorMessage>;

// Lives until OnDone. At most one write is under way; Finish is called once, after the last write.
class StreamReactor final : public ServerReactor {
 public:
  StreamReactor(grpc::CallbackServerContext* context, const WorkerLinkServer::Handler& handler,
                std::atomic<int>& num_attached)
      : context_(context), handler_(handler), num_attached_(num_attached), peer_(context->peer()) {}

  // The handle and the reactor hold each other; OnDone lets go.
  void Begin(std::shared_ptr<AttachedWorker> handle) {
    handle_ = std::move(handle);
    StartRead(&incoming_);
  }

  const std::string& peer() const { return peer_; }

  void Send(std::shared_ptr<const v1::CoordinatorMessage> message) {
    std::unique_lock lock(mutex_);
    if (finish_with_) return;
    if (outgoing_.size() >= kMaxQueuedMessages) {
      lock.unlock();
      return Drop();
    }
    outgoing_.push_back(std::move(message));
    WriteNext(lock);
  }

  void Close(const absl::Status& status) {
    std::unique_lock lock(mutex_);
    if (finish_with_) return;
    finish_with_ = ToGrpc(status);
    FinishWhenIdle(lock);
  }

  void Drop() {
    {
      std::lock_guard lock(mutex_);
      if (done_) return;  // the context has gone
      context_->TryCancel();
    }
    Close(absl::CancelledError("dropped by the coordinator"));
  }

  void OnReadDone(bool ok) override {
    if (ok) {
      handler_.on_message(handle_, std::move(incoming_));
      incoming_.Clear();
      StartRead(&incoming_);
      return;
    }
    Close(absl::OkStatus());
  }

  void OnWriteDone(bool ok) override {
    std::unique_lock lock(mutex_);
    writing_ = false;
    outgoing_.pop_front();
    if (!ok) {
      outgoing_.clear();
      if (!finish_with_)
        finish_with_ = grpc::Status(grpc::StatusCode::CANCELLED, "the worker has gone");
    }
    if (outgoing_.empty()) {
      FinishWhenIdle(lock);
    } else {
      WriteNext(lock);
    }
  }

  void OnCancel() override { cancelled_ = true; }

  void OnDone() override {
    {
      std::lock_guard lock(mutex_);
      done_ = true;
    }
    const std::shared_ptr<AttachedWorker> handle = std::move(handle_);
    handler_.on_closed(
        handle, absl::UnavailableError(cancelled_ ? "the connection was lost" : "it has left"));
    // The server waits for this before it goes.
    std::atomic<int>& num_attached = num_attached_;
    --num_attached;
    num_attached.notify_all();
  }

 private:
  // Never writes under the lock: gRPC may call back.
  void WriteNext(std::unique_lock<std::mutex>& lock) {
    if (writing_ || outgoing_.empty()) return;
    writing_ = true;
    const v1::CoordinatorMessage* message = outgoing_.front().get();
    lock.unlock();
    StartWrite(message);
  }

  void FinishWhenIdle(std::unique_lock<std::mutex>& lock) {
    if (!finish_with_ || writing_ || finished_) return;
    finished_ = true;
    const grpc::Status status = *finish_with_;
    lock.unlock();
    Finish(status);
  }

  grpc::CallbackServerContext* const context_;
  const WorkerLinkServer::Handler& handler_;
  std::atomic<int>& num_attached_;
  const std::string peer_;
  std::shared_ptr<AttachedWorker> handle_;
  v1::WorkerMessage incoming_;
  std::atomic<bool> cancelled_ = false;
  std::mutex mutex_;
  std::deque<std::shared_ptr<const v1::CoordinatorMessage>>
      outgoing_;  // the first one is being written
  std::optional<grpc::Status> finish_with_;
  bool writing_ = false;
  bool finished_ = false;
  bool done_ = false;
};

class Handle final : public AttachedWorker {
 public:
  Handle(grpc::CallbackServerContext* context, const WorkerLinkServer::Handler& handler,
         std::atomic<int>& num_attached)
      : reactor_(context, handler, num_attached) {}
  StreamReactor& reactor() { return reactor_; }

  void Send(std::shared_ptr<const v1::CoordinatorMessage> message) override {
    reactor_.Send(std::move(message));
  }
  void Close(absl::Status status) override { reactor_.Close(status); }
  void Drop() override { reactor_.Drop(); }
  std::string peer() const override { return reactor_.peer(); }

 private:
  StreamReactor reactor_;
};

// Ends a call that was refused.
class Refusal final : public ServerReactor {
 public:
  explicit Refusal(const absl::Status& status) { Finish(ToGrpc(status)); }
  void OnDone() override { delete this; }
};

using ServiceBase = v1::WorkerLink::WithCallbackMethod_Attach<v1::WorkerLink::Service>;

class GrpcWorkerLinkServer final : public WorkerLinkServer, private ServiceBase {
 public:
  GrpcWorkerLinkServer(Options options, EpochStore* store, Handler handler)
      : options_(std::move(options)), store_(*store), handler_(std::move(handler)) {}

  ~GrpcWorkerLinkServer() override {
    if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now() + kShutdownTime);
    for (int left = num_attached_; left > 0; left = num_attached_) num_attached_.wait(left);
  }

  absl::Status Start() {
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort(options_.listen, ServerCredentialsOf(options_.tls), &port);
    builder.RegisterService(static_cast<ServiceBase*>(this));
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    // A worker whose host vanished is noticed without a packet of its own.
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 2000);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 5000);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 1000);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0);
    builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
    builder.SetMaxSendMessageSize(kMaxMessageBytes);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr || port == 0) {
      return absl::UnavailableError(
          absl::StrCat("cannot listen for workers at ", options_.listen,
                       ": the port is in use, or the address is not of this host"));
    }
    address_ = absl::StrCat(options_.listen.substr(0, options_.listen.rfind(':')), ":", port);
    return absl::OkStatus();
  }

  const std::string& address() const override { return address_; }

 private:
  ServerReactor* Attach(grpc::CallbackServerContext* context) override {
    if (absl::Status status = CheckToken(*context, options_.join_token); !status.ok())
      return new Refusal(status);
    if (++num_attached_ > kMaxAttached) {
      --num_attached_;
      return new Refusal(absl::ResourceExhaustedError(
          absl::StrCat(kMaxAttached, " workers are attached already")));
    }
    auto handle = std::make_shared<Handle>(context, handler_, num_attached_);
    handle->reactor().Begin(handle);
    return &handle->reactor();
  }

  grpc::Status StoreSet(grpc::ServerContext* context, const v1::StoreSetRequest* request,
                        v1::StoreSetResponse*) override {
    absl::Status status = CheckToken(*context, options_.join_token);
    if (status.ok()) status = store_.Set(request->key(), request->value());
    return ToGrpc(status);
  }

  grpc::Status StoreGet(grpc::ServerContext* context, const v1::StoreGetRequest* request,
                        v1::StoreGetResponse* response) override {
    if (absl::Status status = CheckToken(*context, options_.join_token); !status.ok())
      return ToGrpc(status);
    absl::StatusOr<std::string> value =
        store_.Get(request->key(), absl::Milliseconds(request->timeout_ms()),
                   [context] { return context->IsCancelled(); });
    if (value.ok()) response->set_value(*std::move(value));
    return ToGrpc(value.status());
  }

  const Options options_;
  EpochStore& store_;
  const Handler handler_;
  std::string address_;
  std::atomic<int> num_attached_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<WorkerLinkServer>> WorkerLinkServer::Listen(Options options,
                                                                           EpochStore* store,
                                                                           Handler handler) {
  auto server =
      std::make_unique<GrpcWorkerLinkServer>(std::move(options), store, std::move(handler));
  PL_RETURN_IF_ERROR(server->Start());
  return server;
}

}  // namespace plumbline
