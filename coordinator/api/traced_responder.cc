#include "coordinator/api/traced_responder.h"

#include <utility>

namespace plumbline {

TracedResponder::TracedResponder(std::shared_ptr<HttpResponder> responder, std::shared_ptr<RequestTrace> trace)
    : responder_(std::move(responder)), trace_(std::move(trace)) {
  headers_.push_back({"X-Request-Id", trace_->id()});
}

// The trace ends before the answer is out: who has the answer finds it counted.
void TracedResponder::Respond(HttpResponse response) {
  trace_->End(response.status);
  responder_->Respond(WithHeaders(std::move(response)));
}

void TracedResponder::StartStream(HttpResponse response) {
  status_ = response.status;
  responder_->StartStream(WithHeaders(std::move(response)));
}

void TracedResponder::Finish() {
  trace_->End(status_);
  responder_->Finish();
}

HttpResponse TracedResponder::WithHeaders(HttpResponse response) const {
  response.headers.insert(response.headers.end(), headers_.begin(), headers_.end());
  return response;
}

}  // namespace plumbline
