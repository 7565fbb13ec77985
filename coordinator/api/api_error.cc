#include "coordinator/api/api_error.h"

#include "absl/strings/cord.h"
#include "coordinator/security/quotas.h"
#include "nlohmann/json.hpp"

namespace plumbline {
namespace {

constexpr char kFieldPayload[] = "plumbline/field";
constexpr int64_t kRetryAfterSeconds = 1;  // where nobody knows better

// OpenAI's "type" and "code" of an error.
struct ErrorName {
  const char* type;
  const char* code;  // null for none
};

ErrorName NameOf(int http_status) {
  switch (http_status) {
    case 400:
      return {"invalid_request_error", nullptr};
    case 401:
      return {"authentication_error", "invalid_api_key"};
    case 403:
      return {"permission_error", nullptr};
    case 404:
      return {"not_found_error", "not_found"};
    case 405:
      return {"invalid_request_error", "method_not_allowed"};
    case 408:
      return {"timeout_error", "request_timeout"};
    case 413:
      return {"invalid_request_error", "request_too_large"};
    case 429:
      return {"rate_limit_error", "queue_full"};
    case 431:
      return {"invalid_request_error", "header_too_large"};
    case 501:
      return {"not_supported_error", "not_supported"};
    case 503:
      return {"unavailable_error", "unavailable"};
    case 504:
      return {"timeout_error", "deadline_exceeded"};
    default:
      return {"server_error", nullptr};
  }
}

ErrorName NameOf(const absl::Status& status) {
  const auto refusal = QuotaRefusalOf(status);
  if (!refusal) return NameOf(HttpStatusOf(status));
  return {refusal->kind == QuotaKind::kTokens ? "tokens" : "requests", "rate_limit_exceeded"};
}

std::string ErrorBody(const ErrorName& name, const std::string& message, const std::string& field) {
  nlohmann::ordered_json error;
  error["message"] = message;
  error["type"] = name.type;
  error["param"] = field.empty() ? nlohmann::ordered_json() : nlohmann::ordered_json(field);
  error["code"] =
      name.code == nullptr ? nlohmann::ordered_json() : nlohmann::ordered_json(name.code);
  nlohmann::ordered_json body;
  body["error"] = std::move(error);
  // A message may quote the client's bytes.
  return body.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

HttpResponse WithHeaders(HttpResponse response, int64_t retry_after_seconds) {
  if (response.status == 401) response.headers.push_back({"WWW-Authenticate", "Bearer"});
  if (response.status == 429 || response.status == 503) {
    response.headers.push_back({"Retry-After", std::to_string(retry_after_seconds)});
  }
  return response;
}

}  // namespace

absl::Status InvalidField(const std::string& field, const std::string& message) {
  absl::Status status = absl::InvalidArgumentError(field + ": " + message);
  status.SetPayload(kFieldPayload, absl::Cord(field));
  return status;
}

std::string FieldOf(const absl::Status& status) {
  const auto payload = status.GetPayload(kFieldPayload);
  return payload ? std::string(*payload) : std::string();
}

int HttpStatusOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return 200;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kFailedPrecondition:
      return 400;
    case absl::StatusCode::kUnauthenticated:
      return 401;
    case absl::StatusCode::kPermissionDenied:
      return 403;
    case absl::StatusCode::kNotFound:
      return 404;
    case absl::StatusCode::kResourceExhausted:
      return 429;
    case absl::StatusCode::kUnimplemented:
      return 501;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kCancelled:  // by the server: the client would not read this
      return 503;
    case absl::StatusCode::kDeadlineExceeded:
      return 504;
    default:
      return 500;
  }
}

std::string ErrorBody(const absl::Status& status) {
  const bool is_model = status.code() == absl::StatusCode::kNotFound;
  ErrorName name = NameOf(status);
  if (is_model) name.code = "model_not_found";
  return ErrorBody(name, std::string(status.message()), is_model ? "model" : FieldOf(status));
}

HttpResponse ErrorResponseOf(int http_status, const std::string& message) {
  return WithHeaders({.status = http_status, .body = ErrorBody(NameOf(http_status), message, "")},
                     kRetryAfterSeconds);
}

HttpResponse ErrorResponseOf(const absl::Status& status) {
  const auto refusal = QuotaRefusalOf(status);
  return WithHeaders({.status = HttpStatusOf(status), .body = ErrorBody(status)},
                     refusal ? refusal->retry_after_seconds : kRetryAfterSeconds);
}

}  // namespace plumbline
