// HttpServer: HTTP/1.1, plain or over TLS, with keep-alive, whole and streamed (chunked) responses.
// Everything is bounded: connections, header, body, output waiting for a slow reader, and the time
// a request may take to arrive. A client that goes away, also while its response is being computed,
// is noticed at once and the response's cancel callback is run. A client that closes its sending
// side counts as gone.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/tls_identity.h"

namespace plumbline {

struct HttpHeader {
  std::string name;
  std::string value;
};

struct HttpRequest {
  std::string method;
  std::string path;                 // without the query, percent-decoded
  std::string query;                // after '?', as sent
  std::vector<HttpHeader> headers;  // names in lower case
  std::string body;

  // Value of a header given by its lower-case name; empty when absent.
  std::string_view Header(std::string_view name) const;
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::vector<HttpHeader> headers;  // beside Content-Type, Content-Length, Connection
  std::string body;
};

// Answers one request: either Respond once, or StartStream, Write..., Finish. Every method may be
// called from any thread and never blocks; calls after the end or after the client has gone do
// nothing. Destroying an unanswered one answers 500.
class HttpResponder {
 public:
  virtual ~HttpResponder() = default;
  virtual void Respond(HttpResponse response) = 0;
  // The body of `response` is the first piece; may be empty.
  virtual void StartStream(HttpResponse response) = 0;
  // False when the client is gone, or was dropped because more than max_buffered_bytes wait for it.
  virtual bool Write(std::string_view piece) = 0;
  virtual void Finish() = 0;
  // `callback` is run once, on a server thread, if the client goes away before the end; at once if
  // it already has.
  virtual void OnCancel(std::function<void()> callback) = 0;
  // Runs `task` on one of the threads that run handlers; drops it once the server has stopped.
  virtual void Post(std::function<void()> task) = 0;
};

class HttpHandler {
 public:
  virtual ~HttpHandler() = default;
  // On a handler thread. May keep the responder and answer later.
  virtual void Handle(HttpRequest request, std::shared_ptr<HttpResponder> responder) = 0;
  // What the server answers by itself, e.g. 413. Thread-safe.
  virtual HttpResponse ErrorResponse(int status, const std::string& message) = 0;
};

struct HttpServerOptions {
  std::string host = "127.0.0.1";
  uint16_t port = 0;  // 0: any free one
  TlsIdentity tls;    // not set: plain; with an authority: clients need its certificates
  int num_io_threads = 2;
  int num_handler_threads = 4;
  int64_t max_connections = 1024;  // more get 503
  int64_t max_header_bytes = 64 << 10;
  int64_t max_body_bytes = 32 << 20;
  int64_t max_buffered_bytes = 4 << 20;             // of one streamed response
  absl::Duration idle_timeout = absl::Seconds(75);  // between requests
  absl::Duration read_timeout =
      absl::Seconds(60);  // of a TLS handshake; from a request's first byte to its last
  absl::Duration write_timeout =
      absl::Seconds(60);  // in which a waiting client must take something
};

class HttpServer {
 public:
  // Listens when this returns. The error names the address, or what is wrong with `tls`. `handler`
  // outlives the server.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(const HttpServerOptions& options,
                                                           HttpHandler* handler);
  virtual ~HttpServer() = default;  // stops at once

  virtual uint16_t port() const = 0;
  // Accepts no more; responses under way may end until `deadline`, then their clients are dropped
  // (and cancel callbacks run). No handler runs after this returns. Idempotent.
  virtual void Stop(absl::Time deadline) = 0;
};

}  // namespace plumbline
