// HttpStream: the bytes of one connection, over TLS or plain. Internal to the server; used on the
// socket's strand. Reads and writes as Asio's streams do, at most one of each under way.
#pragma once

#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <optional>
#include <utility>

namespace plumbline {

class HttpStream {
 public:
  using tcp = boost::asio::ip::tcp;
  using executor_type = tcp::socket::executor_type;

  // Plain when `tls` is null; it outlives the stream.
  HttpStream(tcp::socket socket, boost::asio::ssl::context* tls) : socket_(std::move(socket)) {
    if (tls != nullptr) tls_.emplace(socket_, *tls);
  }

  executor_type get_executor() { return socket_.get_executor(); }
  tcp::socket& socket() { return socket_; }
  bool is_encrypted() const { return tls_.has_value(); }

  // To be done once before anything is read or written; only when encrypted.
  template <class Handler>
  void async_handshake(Handler&& handler) {
    tls_->async_handshake(boost::asio::ssl::stream_base::server, std::forward<Handler>(handler));
  }

  template <class Buffers, class Handler>
  void async_read_some(const Buffers& buffers, Handler&& handler) {
    if (tls_ && !has_ended_) return tls_->async_read_some(buffers, std::forward<Handler>(handler));
    socket_.async_read_some(buffers, std::forward<Handler>(handler));
  }

  template <class Buffers, class Handler>
  void async_write_some(const Buffers& buffers, Handler&& handler) {
    if (tls_) return tls_->async_write_some(buffers, std::forward<Handler>(handler));
    socket_.async_write_some(buffers, std::forward<Handler>(handler));
  }

  // Tells the client that nothing follows. From now on only what comes from the client can be read:
  // over TLS its bare records, for it may go on sending what nobody wants.
  template <class Handler>
  void async_end(Handler&& handler) {
    has_ended_ = true;
    tls_->async_shutdown(std::forward<Handler>(handler));
  }

 private:
  tcp::socket socket_;
  std::optional<boost::asio::ssl::stream<tcp::socket&>> tls_;
  bool has_ended_ = false;
};

}  // namespace plumbline
