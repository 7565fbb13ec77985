// The one key that clients must present, when the server has one.
#pragma once

#include <string>
#include <string_view>

namespace plumbline {

// authorization: the header's or metadata's value, "Bearer KEY". True when no key is needed. Takes the same time wherever
// the two differ.
bool IsAuthorized(std::string_view authorization, const std::string& api_key);

}  // namespace plumbline
