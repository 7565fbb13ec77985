#include "coordinator/api/grpc_trace.h"

#include <grpcpp/grpcpp.h>

#include <string_view>

namespace plumbline {
namespace {

constexpr char kRequestId[] = "x-request-id";

}  // namespace

std::shared_ptr<RequestTrace> BeginTrace(RequestTracker& requests, grpc::ServerContextBase& context, const char* method) {
  std::string_view offered;
  if (const auto given = context.client_metadata().find(kRequestId); given != context.client_metadata().end()) {
    offered = {given->second.data(), given->second.size()};
  }
  auto trace = requests.Begin({.protocol = RequestProtocol::kGrpc, .endpoint = method, .offered_id = offered});
  context.AddTrailingMetadata(kRequestId, trace->id());
  return trace;
}

grpc::Status EndTrace(RequestTrace& trace, grpc::Status status) {
  trace.End(status.error_code());
  return status;
}

}  // namespace plumbline
