// WorkerLinkServer: the coordinator's end of the worker links (proto/cluster.proto, service
// WorkerLink): a gRPC server of its own for attached workers and their store. Knows the join token,
// and nothing of ranks and epochs.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/cluster/epoch_store.h"
#include "proto/tls_identity.h"

namespace plumbline {
namespace v1 {
class CoordinatorMessage;
class WorkerMessage;
}  // namespace v1

// One attached worker. Any thread; never blocks.
class AttachedWorker {
 public:
  virtual ~AttachedWorker() = default;
  // Messages leave in order. One message may be sent to several workers. Dropped when the worker
  // has gone.
  virtual void Send(std::shared_ptr<const v1::CoordinatorMessage> message) = 0;
  // Ends the stream with this status when what was sent has left.
  virtual void Close(absl::Status status) = 0;
  // Ends the stream at once: the worker does not answer.
  virtual void Drop() = 0;
  virtual std::string peer() const = 0;  // its address
};

class WorkerLinkServer {
 public:
  struct Options {
    std::string listen;  // HOST:PORT; port 0: any
    std::string join_token;
    TlsIdentity
        tls;  // not set: plain; else workers need a certificate of its authority, beside the token
  };
  // Called from threads of the server, for one worker one call at a time; must not block.
  struct Handler {
    std::function<void(const std::shared_ptr<AttachedWorker>&, v1::WorkerMessage)> on_message;
    std::function<void(const std::shared_ptr<AttachedWorker>&, absl::Status)>
        on_closed;  // the last call for it
  };
  // UNAVAILABLE: the address is in use or not of this host.
  static absl::StatusOr<std::unique_ptr<WorkerLinkServer>> Listen(Options options,
                                                                  EpochStore* store,
                                                                  Handler handler);
  // Ends every stream; returns after the handler's last call.
  virtual ~WorkerLinkServer() = default;

  virtual const std::string& address() const = 0;  // HOST:PORT with the port that was taken
};

}  // namespace plumbline
