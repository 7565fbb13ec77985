// The id that a request has in answers and in the log.
#pragma once

#include <string>
#include <string_view>

namespace plumbline {

// The client's own (X-Request-Id; may be empty) when it is fit for a header and a log: 1 to 128 printable ASCII
// characters without spaces. Else a new one.
std::string RequestIdOf(std::string_view offered);

}  // namespace plumbline
