// GrpcServer: the public gRPC services: Inference, Training (not supported yet), Cluster,
// grpc.health.v1 and reflection. Health: "" is live; "plumbline.v1.Inference" is ready by progress.
// Deadlines and cancellation end a request's sequences.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "coordinator/api/cluster_info.h"
#include "coordinator/api/request_tracker.h"
#include "coordinator/api/served_model.h"
#include "coordinator/engine/engine.h"
#include "coordinator/security/access_control.h"
#include "proto/tls_identity.h"

namespace grpc {
class Service;
}

namespace plumbline {

struct GrpcServerOptions {
  std::string address = "127.0.0.1:0";  // port 0: any free one
  TlsIdentity tls;                      // not set: plain; with an authority: clients need its certificates
  Engine* engine = nullptr;
  const ServedModel* model = nullptr;
  const ClusterInfo* cluster = nullptr;  // may be null
  RequestTracker* requests = nullptr;
  AccessControl* access = nullptr;       // null: everyone may do everything; else metadata "authorization: Bearer KEY"
  int max_message_bytes = 32 << 20;
  std::vector<grpc::Service*> other_services;  // on the same port; they outlive the server
};

class GrpcServer {
 public:
  // Listens when this returns. The error names the address. What the options point to outlives the
  // server.
  static absl::StatusOr<std::unique_ptr<GrpcServer>> Start(const GrpcServerOptions& options);
  virtual ~GrpcServer() = default;  // stops at once

  virtual uint16_t port() const = 0;
  // Accepts no more; calls under way may end until `deadline`, then they are cancelled. Idempotent.
  virtual void Stop(absl::Time deadline) = 0;
};

}  // namespace plumbline
