#include "coordinator/api/http_framing.h"

#include <boost/beast/http/status.hpp>

#include "absl/strings/str_cat.h"

namespace plumbline {
namespace {

namespace http = boost::beast::http;

// Up to and without the headers about length and connection.
std::string HeadOf(const HttpResponse& response) {
  const std::string reason(http::obsolete_reason(static_cast<http::status>(response.status)));
  std::string head = absl::StrCat("HTTP/1.1 ", response.status, " ", reason, "\r\n");
  if (!response.content_type.empty()) {
    absl::StrAppend(&head, "Content-Type: ", response.content_type, "\r\n");
  }
  for (const HttpHeader& header : response.headers) {
    absl::StrAppend(&head, header.name, ": ", header.value, "\r\n");
  }
  return head;
}

const char* ConnectionHeader(bool is_kept) {
  return is_kept ? "Connection: keep-alive\r\n\r\n" : "Connection: close\r\n\r\n";
}

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

}  // namespace

std::string HttpFraming::WholeHead(const HttpResponse& response) const {
  return absl::StrCat(HeadOf(response), "Content-Length: ", response.body.size(), "\r\n",
                      ConnectionHeader(keep_alive));
}

std::string HttpFraming::StreamHead(const HttpResponse& response) const {
  return absl::StrCat(HeadOf(response), has_chunks() ? "Transfer-Encoding: chunked\r\n" : "",
                      ConnectionHeader(keep_alive && has_chunks()));
}

std::string HttpFraming::Piece(std::string_view piece) const {
  if (!has_chunks()) return std::string(piece);
  std::string bytes = absl::StrCat(absl::Hex(piece.size()), "\r\n");
  bytes.append(piece);
  bytes.append("\r\n");
  return bytes;
}

std::string HttpFraming::LastPiece() const { return has_chunks() ? "0\r\n\r\n" : ""; }

std::string PercentDecode(std::string_view text) {
  std::string result;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%' && i + 2 < text.size() && HexDigit(text[i + 1]) >= 0 &&
        HexDigit(text[i + 2]) >= 0) {
      result += static_cast<char>(HexDigit(text[i + 1]) * 16 + HexDigit(text[i + 2]));
      i += 2;
    } else {
      result += text[i];
    }
  }
  return result;
}

}  // namespace plumbline
