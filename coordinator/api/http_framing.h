// How an answer looks on the wire. Internal to the server.
#pragma once

#include <string>
#include <string_view>

#include "coordinator/api/http_server.h"

namespace plumbline {

struct HttpFraming {
  unsigned version = 11;  // of the client, 10 or 11
  bool keep_alive = false;

  // Status line and headers of a whole answer, or of a stream.
  std::string WholeHead(const HttpResponse& response) const;
  std::string StreamHead(const HttpResponse& response) const;
  // Parts of a stream's body. An old client's stream has no marks and ends with its connection.
  std::string Piece(std::string_view piece) const;
  std::string LastPiece() const;
  bool has_chunks() const { return version >= 11; }
};

std::string PercentDecode(std::string_view text);

}  // namespace plumbline
