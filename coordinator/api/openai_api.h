// OpenAiApi: the routes of the HTTP interface, as OpenAI's clients, lm-eval and Prometheus expect
// them.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "coordinator/api/cluster_info.h"
#include "coordinator/api/generation_call.h"
#include "coordinator/api/http_server.h"
#include "coordinator/api/openai_response.h"
#include "coordinator/api/openai_types.h"
#include "coordinator/api/request_builder.h"
#include "coordinator/api/request_tracker.h"
#include "coordinator/api/served_model.h"
#include "coordinator/api/status_report.h"
#include "coordinator/engine/engine.h"
#include "coordinator/security/access_control.h"

namespace plumbline {

struct OpenAiApiOptions {
  Engine* engine = nullptr;
  const ServedModel* model = nullptr;
  const ClusterInfo* cluster = nullptr;  // may be null
  RequestTracker* requests = nullptr;
  AccessControl* access = nullptr;       // null: everyone may do everything
};

class OpenAiApi final : public HttpHandler {
 public:
  // What the options point to outlives this.
  explicit OpenAiApi(const OpenAiApiOptions& options);

  void Handle(HttpRequest request, std::shared_ptr<HttpResponder> responder) override;
  HttpResponse ErrorResponse(int status, const std::string& message) override;

 private:
  struct Call;   // one request under way
  struct Route;  // method, path, what answers it
  static const Route kRoutes[];

  static const Route* FindRoute(const HttpRequest& request, std::string* allowed);
  absl::StatusOr<Caller> Authenticate(const HttpRequest& request) const;
  absl::StatusOr<Quotas::Ticket> Admit(const Caller& caller) const;

  // Each answers through the call's responder, or returns an error to answer with.
  absl::Status ChatCompletions(Call& call);
  absl::Status Completions(Call& call);
  absl::Status ListModels(Call& call);
  absl::Status GetModel(Call& call);
  absl::Status Tokenize(Call& call);
  absl::Status Detokenize(Call& call);
  absl::Status TokenizerInfo(Call& call);
  absl::Status Health(Call& call);
  absl::Status Ready(Call& call);
  absl::Status Metrics(Call& call);
  absl::Status Status(Call& call);
  absl::Status Page(Call& call);
  absl::Status NotSupported(Call& call);

  // Appends the requests of one prompt's choices.
  absl::Status AddChoices(const CompletionFields& fields, const std::vector<int32_t>& prompt,
                          const Call& call, std::vector<GenerationRequest>* requests) const;
  absl::StatusOr<std::vector<int32_t>> EncodePrompt(const CompletionRequest& request,
                                                    const TextPrompt& prompt) const;
  GenerationCallOptions CallOptions(const Call& call, const CompletionFields& fields);
  ResponseOptions FormatOptions(const CompletionFields& fields, const char* id_prefix) const;
  ResponseJson ModelJson() const;

  const OpenAiApiOptions options_;
  const RequestBuilder builder_;
  StatusReport status_;
};

}  // namespace plumbline
