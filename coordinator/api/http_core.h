// What the connections of one HttpServer share. Internal to the server.
#pragma once

#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ssl/context.hpp>
#include <boost/asio/thread_pool.hpp>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <set>

#include "absl/time/time.h"
#include "coordinator/api/http_server.h"

namespace plumbline {

// A connection, as the core sees it.
class HttpClient {
 public:
  virtual ~HttpClient() = default;
  virtual void CloseIfIdle() = 0;
  virtual void Drop() = 0;
};

// What connections share. Connections and responders keep it alive, because a responder may outlive
// the server.
class HttpCore {
 public:
  HttpCore(const HttpServerOptions& options, HttpHandler* handler,
           std::unique_ptr<boost::asio::ssl::context> tls);

  // False when there are too many, or the server stops.
  bool Add(HttpClient* client);
  void Remove(HttpClient* client);
  bool stopping() const { return stopping_; }
  // Runs `task` on a handler thread; drops it after JoinHandlers.
  void Post(std::function<void()> task);

  // Idle connections close now, busy ones when their response is out, all at `deadline`.
  void StopConnections(absl::Time deadline);
  void JoinHandlers();

  const HttpServerOptions options;
  HttpHandler* const handler;
  const std::unique_ptr<boost::asio::ssl::context> tls;  // null: plain
  boost::asio::io_context io;

 private:
  boost::asio::thread_pool handlers_;
  std::atomic<bool> stopping_ = false;  // no lock: asked for under the locks of connections
  std::mutex mutex_;
  std::condition_variable changed_;
  std::set<HttpClient*> clients_;
  bool handlers_joined_ = false;
};

}  // namespace plumbline
