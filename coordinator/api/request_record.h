// RequestRecord: what the log, the metrics and the status page say of one request. Never what was asked or answered.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/time/time.h"

namespace plumbline {

enum class RequestProtocol { kHttp, kGrpc };

struct RequestRecord {
  RequestProtocol protocol = RequestProtocol::kHttp;
  std::string id;
  std::string endpoint;   // a route or method of the server's own, never what a client sent: labels are bounded
  int64_t key_id = 0;     // Caller::key_id
  std::string key;        // its name
  std::string model;      // of requests that generate or score
  int status = 0;         // HTTP's, or gRPC's code; 499: the HTTP client went away. While it lives: 0
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;     // those of them that came from the prefix cache; known at the end
  int64_t generated_tokens = 0;  // of all choices
  std::optional<absl::Duration> to_first_token;
  absl::Duration age;  // since its arrival; in all, when it has ended
};

}  // namespace plumbline
