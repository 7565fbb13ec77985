// The trace of a gRPC call. Internal to the services.
#pragma once

#include <memory>

#include "coordinator/api/request_tracker.h"

namespace grpc {
class ServerContextBase;
class Status;
}  // namespace grpc

namespace plumbline {

// A call has come; metadata "x-request-id" is taken over or made, and sent back with the trailing metadata. method: of
// the server's own, "Inference.Generate".
std::shared_ptr<RequestTrace> BeginTrace(RequestTracker& requests, grpc::ServerContextBase& context, const char* method);
// Passes the status through.
grpc::Status EndTrace(RequestTrace& trace, grpc::Status status);

}  // namespace plumbline
