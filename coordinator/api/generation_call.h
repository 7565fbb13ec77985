// GenerationCall: one HTTP request's sequences, from the engine to the client. Outputs arrive on
// the engine thread, which only puts them in a list; formatting happens on the server's handler
// threads. A client that goes away, or reads too slowly, cancels every sequence.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "coordinator/api/http_server.h"
#include "coordinator/api/openai_response.h"
#include "coordinator/api/request_trace.h"
#include "coordinator/engine/engine.h"
#include "coordinator/security/quotas.h"

namespace plumbline {

struct GenerationCallOptions {
  Engine* engine = nullptr;  // outlives the call
  std::shared_ptr<HttpResponder> responder;
  std::shared_ptr<RequestTrace> trace;
  std::string model;  // its name
  std::unique_ptr<ResponseFormat> format;
  std::vector<GenerationRequest> requests;  // one per choice
  int64_t prompt_tokens = 0;                // for the usage
  int64_t choices_per_prompt = 1;           // in order: all of the first prompt, then the next one's
  bool stream = false;
  bool include_usage = false;  // in the stream
  Quotas::Ticket ticket;  // released before the answer's last byte is out
};

// Submits all and returns; answers through the responder, also when that fails.
void StartGenerationCall(GenerationCallOptions options);

}  // namespace plumbline
