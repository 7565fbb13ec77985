#include "coordinator/api/api_error.h"

#include "absl/strings/cord.h"
#include "nlohmann/json.hpp"

namespace plumbline {
namespace {

constexpr char kFieldPayload[] = "plumbline/field";
constexpr char kRetryAfterSeconds[] = "1";

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

std::string ErrorBody(int http_status, const std::string& message, const std::string& field) {
  const ErrorName name = NameOf(http_status);
  nlohmann::ordered_json error;
  error["message"] = message;
  error["type"] = name.type;
  error["param"] = field.empty() ? nlohmann::ordered_json() : nlohmann::ordered_json(field);
  error["code"] =
      name.code == nullptr ? nlohmann::ordered_json() : nlohmann::ordered_json(name.code);
  if (http_status == 404 && field == "model") error["code"] = "model_not_found";
  nlohmann::ordered_json body;
  body["error"] = std::move(error);
  // A message may quote the client's bytes.
  return body.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

HttpResponse WithRetry(HttpResponse response) {
  if (response.status == 429 || response.status == 503) {
    response.headers.push_back({"Retry-After", kRetryAfterSeconds});
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
  const int http_status = HttpStatusOf(status);
  const std::string field =
      status.code() == absl::StatusCode::kNotFound ? "model" : FieldOf(status);
  return ErrorBody(http_status, std::string(status.message()), field);
}

HttpResponse ErrorResponseOf(int http_status, const std::string& message) {
  return WithRetry({.status = http_status, .body = ErrorBody(http_status, message, "")});
}

HttpResponse ErrorResponseOf(const absl::Status& status) {
  return WithRetry({.status = HttpStatusOf(status), .body = ErrorBody(status)});
}

}  // namespace plumbline
