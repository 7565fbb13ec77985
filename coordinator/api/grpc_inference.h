// The gRPC Inference service. Internal to grpc_service.cc.
#pragma once

#include <atomic>
#include <memory>

#include "coordinator/api/cluster_info.h"
#include "coordinator/api/request_tracker.h"
#include "coordinator/api/served_model.h"
#include "coordinator/engine/engine.h"
#include "coordinator/security/access_control.h"

namespace grpc {
class Service;
}

namespace plumbline {

// Lets a stopping server wait for its calls.
struct CallGate {
  std::atomic<bool> is_open = true;
  std::atomic<int> num_active = 0;
};

struct InferenceServiceOptions {
  Engine* engine = nullptr;
  const ServedModel* model = nullptr;
  const ClusterInfo* cluster = nullptr;  // may be null
  RequestTracker* requests = nullptr;
  AccessControl* access = nullptr;       // null: everyone may do everything
  CallGate* gate = nullptr;
};

// What the options point to outlives the service; the service outlives its server.
std::unique_ptr<grpc::Service> MakeInferenceService(const InferenceServiceOptions& options);

}  // namespace plumbline
