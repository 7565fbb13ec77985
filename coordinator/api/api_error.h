// How a Status becomes an answer: the one place that maps codes to HTTP, and OpenAI's JSON error
// object.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "coordinator/api/http_server.h"

namespace plumbline {

// INVALID_ARGUMENT about one field of a request; the field's name is kept for the error object's
// "param".
absl::Status InvalidField(const std::string& field, const std::string& message);
// The field of InvalidField; empty when there is none.
std::string FieldOf(const absl::Status& status);

int HttpStatusOf(const absl::Status& status);

// {"error": {"message", "type", "param", "code"}}
std::string ErrorBody(const absl::Status& status);
// The same for what has only an HTTP status, e.g. 413.
HttpResponse ErrorResponseOf(int http_status, const std::string& message);
// With Retry-After for 429 and 503, WWW-Authenticate for 401.
HttpResponse ErrorResponseOf(const absl::Status& status);

}  // namespace plumbline
