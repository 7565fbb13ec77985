#include "coordinator/api/http_core.h"

#include <algorithm>
#include <boost/asio/post.hpp>
#include <utility>

#include "absl/time/clock.h"

namespace plumbline {
namespace asio = boost::asio;

HttpCore::HttpCore(const HttpServerOptions& options, HttpHandler* handler,
                   std::unique_ptr<asio::ssl::context> tls)
    : options(options),
      handler(handler),
      tls(std::move(tls)),
      handlers_(options.num_handler_threads) {}

bool HttpCore::Add(HttpClient* client) {
  const std::lock_guard lock(mutex_);
  if (stopping_ || static_cast<int64_t>(clients_.size()) >= options.max_connections) {
    return false;
  }
  clients_.insert(client);
  return true;
}

void HttpCore::Remove(HttpClient* client) {
  const std::lock_guard lock(mutex_);
  clients_.erase(client);
  changed_.notify_all();
}

void HttpCore::Post(std::function<void()> task) {
  const std::lock_guard lock(mutex_);
  if (!handlers_joined_) asio::post(handlers_, std::move(task));
}

void HttpCore::StopConnections(absl::Time deadline) {
  std::unique_lock lock(mutex_);
  stopping_ = true;
  for (HttpClient* client : clients_) client->CloseIfIdle();
  const auto none_left = [this] { return clients_.empty(); };
  while (!none_left() && absl::Now() < deadline) {
    changed_.wait_for(lock, absl::ToChronoMilliseconds(
                                std::min(absl::Milliseconds(100), deadline - absl::Now())));
  }
  for (HttpClient* client : clients_) client->Drop();
  changed_.wait(lock, none_left);
}

void HttpCore::JoinHandlers() {
  {
    const std::lock_guard lock(mutex_);
    handlers_joined_ = true;
  }
  handlers_.join();
}

}  // namespace plumbline
