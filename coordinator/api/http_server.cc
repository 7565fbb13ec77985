#include "coordinator/api/http_server.h"

#include <atomic>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <chrono>
#include <thread>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "coordinator/api/http_connection.h"
#include "coordinator/api/http_tls.h"
#include "proto/status.h"

namespace plumbline {
namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;

std::string_view HttpRequest::Header(std::string_view name) const {
  for (const HttpHeader& header : headers) {
    if (header.name == name) return header.value;
  }
  return {};
}

namespace {

class BeastServer final : public HttpServer {
 public:
  BeastServer(const HttpServerOptions& options, HttpHandler* handler,
              std::unique_ptr<asio::ssl::context> tls)
      : core_(std::make_shared<HttpCore>(options, handler, std::move(tls))),
        acceptor_(asio::make_strand(core_->io)),
        retry_timer_(acceptor_.get_executor()),
        work_(asio::make_work_guard(core_->io)) {}

  ~BeastServer() override { Stop(absl::InfinitePast()); }

  absl::Status Listen() {
    const HttpServerOptions& options = core_->options;
    const std::string where = absl::StrCat(options.host, ":", options.port);
    error_code error;
    tcp::resolver resolver(core_->io);
    const auto endpoints =
        resolver.resolve(options.host, std::to_string(options.port), tcp::resolver::passive, error);
    if (error || endpoints.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("cannot listen on ", where, ": ", error.message()));
    }
    const tcp::endpoint endpoint = *endpoints.begin();
    acceptor_.open(endpoint.protocol(), error);
    if (!error) acceptor_.set_option(tcp::acceptor::reuse_address(true), error);
    if (!error) acceptor_.bind(endpoint, error);
    if (!error) acceptor_.listen(asio::socket_base::max_listen_connections, error);
    if (error) {
      return absl::UnavailableError(
          absl::StrCat("cannot listen on ", where, ": ", error.message()));
    }
    port_ = acceptor_.local_endpoint().port();
    Accept();
    for (int i = 0; i < options.num_io_threads; ++i) {
      threads_.emplace_back([core = core_] { core->io.run(); });
    }
    return absl::OkStatus();
  }

  uint16_t port() const override { return port_; }

  void Stop(absl::Time deadline) override {
    if (stopped_.exchange(true)) return;
    asio::post(acceptor_.get_executor(), [this] {
      error_code ignored;
      acceptor_.close(ignored);
      retry_timer_.cancel();
    });
    core_->StopConnections(deadline);
    core_->JoinHandlers();
    work_.reset();
    for (std::thread& thread : threads_) thread.join();
  }

 private:
  // The acceptor's strand orders these with Stop.
  void Accept() {
    acceptor_.async_accept(
        asio::make_strand(core_->io), [this](error_code error, tcp::socket socket) {
          if (stopped_) return;
          if (error) {  // e.g. out of file descriptors: the backlog waits for better times
            retry_timer_.expires_after(std::chrono::milliseconds(100));
            retry_timer_.async_wait([this](error_code cancelled) {
              if (!cancelled) Accept();
            });
            return;
          }
          StartConnection(core_, std::move(socket));
          Accept();
        });
  }

  std::shared_ptr<HttpCore> core_;
  tcp::acceptor acceptor_;
  asio::steady_timer retry_timer_;
  asio::executor_work_guard<asio::io_context::executor_type> work_;
  std::vector<std::thread> threads_;
  std::atomic<bool> stopped_ = false;
  uint16_t port_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(const HttpServerOptions& options,
                                                              HttpHandler* handler) {
  PL_ASSIGN_OR_RETURN(auto tls, MakeTlsContext(options.tls));
  auto server = std::make_unique<BeastServer>(options, handler, std::move(tls));
  if (absl::Status status = server->Listen(); !status.ok()) return status;
  return server;
}

}  // namespace plumbline
