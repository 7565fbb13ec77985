// TracedResponder: an HttpResponder that puts headers of ours on the answer and ends the request's trace with it.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string_view>
#include <vector>

#include "coordinator/api/http_server.h"
#include "coordinator/api/request_trace.h"

namespace plumbline {

class TracedResponder final : public HttpResponder {
 public:
  // `trace` may be shared with whoever makes the answer. One that is never answered ends as a client's that went away.
  TracedResponder(std::shared_ptr<HttpResponder> responder, std::shared_ptr<RequestTrace> trace);

  void AddHeader(HttpHeader header) { headers_.push_back(std::move(header)); }  // before the answer

  void Respond(HttpResponse response) override;
  void StartStream(HttpResponse response) override;
  bool Write(std::string_view piece) override { return responder_->Write(piece); }
  void Finish() override;
  void OnCancel(std::function<void()> callback) override { responder_->OnCancel(std::move(callback)); }
  void Post(std::function<void()> task) override { responder_->Post(std::move(task)); }

 private:
  HttpResponse WithHeaders(HttpResponse response) const;

  const std::shared_ptr<HttpResponder> responder_;
  const std::shared_ptr<RequestTrace> trace_;
  std::vector<HttpHeader> headers_;
  std::atomic<int> status_ = 0;
};

}  // namespace plumbline
