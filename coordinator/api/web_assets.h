// The status page: files of coordinator/api/web/, part of the program.
#pragma once

#include <string_view>

namespace plumbline {

struct WebAsset {
  const char* name;  // "index.html"
  const char* content_type;
  std::string_view body;
};

// Null when there is none of that name.
const WebAsset* FindWebAsset(std::string_view name);

// Nothing but this server's own files; no scripts or styles inside the page.
inline constexpr char kWebContentPolicy[] =
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'";

}  // namespace plumbline
