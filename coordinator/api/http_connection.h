// The connections of one HttpServer. Internal to http_server.cc and http_connection.cc.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/thread_pool.hpp>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <set>

#include "absl/time/time.h"
#include "coordinator/api/http_server.h"

namespace plumbline {

class HttpConnection;

// What connections share. Connections and responders keep it alive, because a responder may outlive
// the server.
class HttpCore {
 public:
  HttpCore(const HttpServerOptions& options, HttpHandler* handler);

  // False when there are too many, or the server stops.
  bool Add(HttpConnection* connection);
  void Remove(HttpConnection* connection);
  bool stopping() const;
  // Runs `task` on a handler thread; drops it after JoinHandlers.
  void Post(std::function<void()> task);

  // Idle connections close now, busy ones when their response is out, all at `deadline`.
  void StopConnections(absl::Time deadline);
  void JoinHandlers();

  const HttpServerOptions options;
  HttpHandler* const handler;
  boost::asio::io_context io;

 private:
  boost::asio::thread_pool handlers_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::set<HttpConnection*> connections_;
  bool stopping_ = false;
  bool handlers_joined_ = false;
};

// Takes over an accepted socket whose executor is a strand of core->io.
void StartConnection(std::shared_ptr<HttpCore> core, boost::asio::ip::tcp::socket socket);

}  // namespace plumbline
