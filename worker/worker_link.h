// WorkerLink: the worker's end of the link to the coordinator (proto/cluster.proto, service
// WorkerLink): one stream of messages both ways, and the store in which ranks leave each other
// their addresses.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "parallel/communicator.h"
#include "proto/tls_identity.h"

namespace plumbline {
namespace v1 {
class CoordinatorMessage;
class Hello;
class WorkerMessage;
}  // namespace v1

class WorkerLink {
 public:
  struct Options {
    std::string coordinator;  // HOST:PORT
    std::string join_token;
    TlsIdentity tls;  // not set: plain
    absl::Duration connect_timeout = absl::Seconds(60);
  };
  // Called from threads of the link, one call at a time; must not block.
  struct Handler {
    std::function<void(const v1::CoordinatorMessage&)> on_message;
    std::function<void(absl::Status)>
        on_closed;  // once, the last call: how the coordinator ended the stream, or UNAVAILABLE
  };

  // Waits for the coordinator to listen, then attaches. UNAVAILABLE names the address when nobody
  // is there in time; PERMISSION_DENIED: the certificates of the two do not go together.
  static absl::StatusOr<std::unique_ptr<WorkerLink>> Dial(Options options, const v1::Hello& hello,
                                                          Handler handler);
  // Ends the stream; returns after the handler's last call.
  virtual ~WorkerLink() = default;

  // Never blocks; messages leave in order. Dropped once the stream is closed. Any thread.
  virtual void Send(v1::WorkerMessage message) = 0;

  // The coordinator's store. Cancel ends the waits under way and all later calls; any thread.
  class Store : public RendezvousStore {
   public:
    virtual void Cancel() = 0;
  };
  // The link outlives it.
  virtual std::unique_ptr<Store> OpenStore() = 0;
};

// The address of this host on its way to the coordinator: what its peers, who dial the same, are
// likely to reach.
absl::StatusOr<std::string> LocalAddressTowards(const std::string& host_port);

}  // namespace plumbline
