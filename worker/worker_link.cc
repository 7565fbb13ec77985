#include "worker/worker_link.h"

#include <grpcpp/grpcpp.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "proto/cluster.grpc.pb.h"
#include "proto/grpc_credentials.h"
#include "proto/status.h"

namespace plumbline {
namespace {

constexpr int kMaxMessageBytes = 1 << 30;  // logits of a whole step, when somebody audits them
constexpr int kStoreCallMs = 10'000;       // of a call that does not wait
constexpr absl::Duration kConnectAttempt = absl::Milliseconds(300);
constexpr int kMaxClosed = 5;  // attempts in a row

grpc::ChannelArguments Arguments() {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 20);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 20);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  // A coordinator whose host vanished is noticed without a packet of its own.
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 2000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 5000);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  arguments.SetMaxSendMessageSize(kMaxMessageBytes);
  return arguments;
}

std::chrono::system_clock::time_point After(absl::Duration duration) {
  return std::chrono::system_clock::now() + absl::ToChronoMilliseconds(duration);
}

// The stream. A hold keeps the call alive for writes that start outside of its callbacks; it is
// given back when reading has ended and no write is under way.
class Stream final : public grpc::ClientBidiReactor<v1::WorkerMessage, v1::CoordinatorMessage> {
 public:
  Stream(v1::WorkerLink::Stub& stub, const std::string& join_token, WorkerLink::Handler handler)
      : handler_(std::move(handler)) {
    context_.AddMetadata("join-token", join_token);
    stub.async()->Attach(&context_, this);
  }

  void Start(const v1::Hello& hello) {
    v1::WorkerMessage message;
    *message.mutable_hello() = hello;
    AddHold();
    StartRead(&incoming_);
    Send(std::move(message));
    StartCall();
  }

  void Send(v1::WorkerMessage message) {
    {
      std::lock_guard lock(mutex_);
      if (read_ended_) return;
      outgoing_.push_back(std::move(message));
      if (writing_) return;
      writing_ = true;
    }
    StartWrite(&outgoing_.front());
  }

  // Returns after OnDone.
  void End() {
    context_.TryCancel();
    std::unique_lock lock(mutex_);
    done_changed_.wait(lock, [this] { return done_; });
  }

  void OnReadDone(bool ok) override {
    if (ok) {
      handler_.on_message(incoming_);
      StartRead(&incoming_);
      return;
    }
    std::unique_lock lock(mutex_);
    read_ended_ = true;
    if (writing_) return;
    lock.unlock();
    RemoveHold();
  }

  void OnWriteDone(bool ok) override {
    std::unique_lock lock(mutex_);
    outgoing_.pop_front();
    if (ok && !read_ended_ && !outgoing_.empty()) {
      lock.unlock();
      StartWrite(&outgoing_.front());
      return;
    }
    writing_ = false;
    const bool finished = read_ended_;
    lock.unlock();
    if (finished) RemoveHold();
  }

  void OnDone(const grpc::Status& status) override {
    handler_.on_closed(status.ok() ? absl::UnavailableError("the coordinator closed the stream")
                                   : FromGrpc(status));
    std::lock_guard lock(mutex_);
    done_ = true;
    done_changed_.notify_all();
  }

 private:
  const WorkerLink::Handler handler_;
  grpc::ClientContext context_;
  v1::CoordinatorMessage incoming_;
  std::mutex mutex_;
  std::condition_variable done_changed_;
  std::deque<v1::WorkerMessage> outgoing_;  // the first one is being written
  bool writing_ = false;
  bool read_ended_ = false;
  bool done_ = false;
};

class LinkStore final : public WorkerLink::Store {
 public:
  LinkStore(v1::WorkerLink::Stub& stub, std::string join_token)
      : stub_(stub), join_token_(std::move(join_token)) {}

  absl::Status Set(const std::string& key, const std::string& value) override {
    v1::StoreSetRequest request;
    request.set_key(key);
    request.set_value(value);
    v1::StoreSetResponse response;
    return Call(absl::Milliseconds(kStoreCallMs), [&](grpc::ClientContext& context) {
      return stub_.StoreSet(&context, request, &response);
    });
  }

  absl::StatusOr<std::string> Get(const std::string& key, absl::Duration timeout) override {
    v1::StoreGetRequest request;
    request.set_key(key);
    request.set_timeout_ms(absl::ToInt64Milliseconds(timeout));
    v1::StoreGetResponse response;
    PL_RETURN_IF_ERROR(
        Call(timeout + absl::Milliseconds(kStoreCallMs), [&](grpc::ClientContext& context) {
          return stub_.StoreGet(&context, request, &response);
        }));
    return response.value();
  }

  void Cancel() override {
    std::lock_guard lock(mutex_);
    cancelled_ = true;
    for (grpc::ClientContext* context : under_way_) context->TryCancel();
  }

 private:
  template <typename Rpc>
  absl::Status Call(absl::Duration timeout, const Rpc& rpc) {
    grpc::ClientContext context;
    context.AddMetadata("join-token", join_token_);
    context.set_deadline(After(timeout));
    {
      std::lock_guard lock(mutex_);
      if (cancelled_) return absl::CancelledError("the store was closed");
      under_way_.insert(&context);
    }
    const grpc::Status status = rpc(context);
    std::lock_guard lock(mutex_);
    under_way_.erase(&context);
    return FromGrpc(status);
  }

  v1::WorkerLink::Stub& stub_;
  const std::string join_token_;
  std::mutex mutex_;
  bool cancelled_ = false;
  std::set<grpc::ClientContext*> under_way_;
};

class GrpcWorkerLink final : public WorkerLink {
 public:
  GrpcWorkerLink(std::shared_ptr<grpc::Channel> channel, Options options, const v1::Hello& hello,
                 Handler handler)
      : options_(std::move(options)),
        stub_(v1::WorkerLink::NewStub(std::move(channel))),
        stream_(*stub_, options_.join_token, std::move(handler)) {
    stream_.Start(hello);
  }
  ~GrpcWorkerLink() override { stream_.End(); }

  void Send(v1::WorkerMessage message) override { stream_.Send(std::move(message)); }
  std::unique_ptr<Store> OpenStore() override {
    return std::make_unique<LinkStore>(*stub_, options_.join_token);
  }

 private:
  const Options options_;
  const std::unique_ptr<v1::WorkerLink::Stub> stub_;
  Stream stream_;
};

// What keeps the channel from a connection, in gRPC's words: a call that does not wait is told.
std::string Obstacle(v1::WorkerLink::Stub& stub) {
  grpc::ClientContext context;
  context.set_deadline(After(absl::Seconds(1)));
  v1::StoreGetResponse response;
  return stub.StoreGet(&context, {}, &response).error_message();
}

// A coordinator that is not there yet is waited for; one that does not want this worker's
// certificate is not.
absl::Status WaitForCoordinator(const std::shared_ptr<grpc::Channel>& channel,
                                const WorkerLink::Options& options) {
  const auto stub = v1::WorkerLink::NewStub(channel);
  const absl::Time deadline = absl::Now() + options.connect_timeout;
  int num_closed = 0;
  while (!channel->WaitForConnected(After(std::min(kConnectAttempt, deadline - absl::Now())))) {
    const std::string obstacle = Obstacle(*stub);
    if (absl::StrContains(obstacle, "handshake failed") ||
        absl::StrContains(obstacle, "peer certificate")) {
      return absl::PermissionDeniedError(
          absl::StrCat("no TLS with the coordinator at ", options.coordinator, ": ", obstacle));
    }
    num_closed = absl::StrContains(obstacle, "Socket closed") ? num_closed + 1 : 0;
    if (num_closed == kMaxClosed) {
      return absl::PermissionDeniedError(absl::StrCat(
          "the coordinator at ", options.coordinator, " ends the connection at once: ",
          options.tls.is_set()
              ? "it refuses this worker's certificate"
              : "does it want a certificate (--cluster-cert, --cluster-key, --cluster-ca)?"));
    }
    if (absl::Now() >= deadline) {
      return absl::UnavailableError(absl::StrCat("no coordinator answers at ", options.coordinator,
                                                 " within ",
                                                 absl::FormatDuration(options.connect_timeout)));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<WorkerLink>> WorkerLink::Dial(Options options,
                                                             const v1::Hello& hello,
                                                             Handler handler) {
  auto channel = grpc::CreateCustomChannel(options.coordinator, ChannelCredentialsOf(options.tls),
                                           Arguments());
  PL_RETURN_IF_ERROR(WaitForCoordinator(channel, options));
  return std::make_unique<GrpcWorkerLink>(std::move(channel), std::move(options), hello,
                                          std::move(handler));
}

absl::StatusOr<std::string> LocalAddressTowards(const std::string& host_port) {
  const size_t colon = host_port.rfind(':');
  if (colon == std::string::npos || colon == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("coordinator address '", host_port, "' is not HOST:PORT"));
  }
  std::string host = host_port.substr(0, colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']')
    host = host.substr(1, host.size() - 2);
  addrinfo hints = {};
  hints.ai_socktype = SOCK_DGRAM;
  addrinfo* found = nullptr;
  if (const int rc = getaddrinfo(host.c_str(), host_port.c_str() + colon + 1, &hints, &found);
      rc != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("coordinator address '", host_port, "': ", gai_strerror(rc)));
  }
  // Connecting a datagram socket sends nothing; it only picks the route.
  const int fd = socket(found->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  sockaddr_storage local = {};
  socklen_t length = sizeof(local);
  char text[NI_MAXHOST] = "";
  const bool ok = fd >= 0 && connect(fd, found->ai_addr, found->ai_addrlen) == 0 &&
                  getsockname(fd, reinterpret_cast<sockaddr*>(&local), &length) == 0 &&
                  getnameinfo(reinterpret_cast<sockaddr*>(&local), length, text, sizeof(text),
                              nullptr, 0, NI_NUMERICHOST) == 0;
  if (fd >= 0) close(fd);
  freeaddrinfo(found);
  if (!ok)
    return absl::UnavailableError(absl::StrCat("no route to the coordinator at ", host_port));
  return std::string(text);
}

}  // namespace plumbline
