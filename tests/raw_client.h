// A client of HTTP, plain or over TLS, that says exactly the bytes it is told to. For tests.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <utility>

namespace plumbline {

// What a client of TLS trusts and shows. Files may be empty.
class ClientTls {
 public:
  ClientTls(const std::string& ca_file, const std::string& certificate_file,
            const std::string& key_file)
      : context_(SSL_CTX_new(TLS_client_method())) {
    std::signal(SIGPIPE, SIG_IGN);  // OpenSSL writes to sockets as to files
    SSL_CTX_set_verify(context_, SSL_VERIFY_PEER, nullptr);
    SSL_CTX_load_verify_locations(context_, ca_file.c_str(), nullptr);
    if (certificate_file.empty()) return;
    SSL_CTX_use_certificate_chain_file(context_, certificate_file.c_str());
    SSL_CTX_use_PrivateKey_file(context_, key_file.c_str(), SSL_FILETYPE_PEM);
  }
  ~ClientTls() { SSL_CTX_free(context_); }
  ClientTls(const ClientTls&) = delete;
  ClientTls& operator=(const ClientTls&) = delete;

  SSL_CTX* context() const { return context_; }

 private:
  SSL_CTX* const context_;
};

class RawClient {
 public:
  // Over TLS when `tls` is not null, taking up `session` when there is one. A read waits for 5 s.
  explicit RawClient(uint16_t port, const ClientTls* tls = nullptr, SSL_SESSION* session = nullptr)
      : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
    const timeval patience{.tv_sec = 60};  // of a busy machine
    ::setsockopt(socket_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connected_ = ::connect(socket_, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
    if (tls == nullptr || !connected_) return;
    ssl_ = SSL_new(tls->context());
    SSL_set_fd(ssl_, socket_);
    X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(ssl_), "127.0.0.1");
    if (session != nullptr) SSL_set_session(ssl_, session);
    ERR_clear_error();
    connected_ = SSL_connect(ssl_) == 1;
    if (!connected_) {
      const char* reason = ERR_reason_error_string(ERR_peek_last_error());
      handshake_error_ = reason == nullptr ? "the connection ended" : reason;
    }
  }
  ~RawClient() { Close(); }

  RawClient(const RawClient&) = delete;
  RawClient& operator=(const RawClient&) = delete;

  bool connected() const { return connected_; }
  const std::string& handshake_error() const { return handshake_error_; }
  SSL* ssl() const { return ssl_; }

  void Close() {
    SSL_free(ssl_);
    ssl_ = nullptr;
    if (socket_ >= 0) ::close(socket_);
    socket_ = -1;
  }

  // False when the server takes no more.
  bool Send(const std::string& bytes) {
    size_t sent = 0;
    while (sent < bytes.size()) {
      const ssize_t n = Write(bytes.data() + sent, bytes.size() - sent);
      if (n <= 0) return false;
      sent += static_cast<size_t>(n);
    }
    return true;
  }

  // Reads until `end` has come, or to the end of the connection when it is empty.
  std::string ReadUntil(const std::string& end) {
    while (end.empty() || received_.find(end) == std::string::npos) {
      char buffer[4096];
      const ssize_t n = Read(buffer, sizeof buffer);
      if (n <= 0) break;
      received_.append(buffer, static_cast<size_t>(n));
    }
    const size_t at = end.empty() ? std::string::npos : received_.find(end);
    const size_t size = at == std::string::npos ? received_.size() : at + end.size();
    std::string result = received_.substr(0, size);
    received_.erase(0, size);
    return result;
  }
  std::string ReadAll() { return ReadUntil(""); }

 private:
  ssize_t Write(const char* bytes, size_t size) {
    if (ssl_ == nullptr) return ::send(socket_, bytes, size, MSG_NOSIGNAL);
    return SSL_write(ssl_, bytes, static_cast<int>(std::min<size_t>(size, 1 << 20)));
  }
  ssize_t Read(char* buffer, size_t size) {
    if (ssl_ == nullptr) return ::recv(socket_, buffer, size, 0);
    return SSL_read(ssl_, buffer, static_cast<int>(size));
  }

  int socket_;
  SSL* ssl_ = nullptr;
  bool connected_;
  std::string handshake_error_;
  std::string received_;
};

struct HttpReply {
  int status = 0;
  std::string head;
  std::string body;  // without chunk marks
};

// Splits one whole answer.
inline HttpReply ParseReply(const std::string& bytes) {
  HttpReply reply;
  const size_t end = bytes.find("\r\n\r\n");
  if (!bytes.starts_with("HTTP/1.1 ") || end == std::string::npos) return reply;
  reply.status = std::atoi(bytes.c_str() + 9);
  reply.head = bytes.substr(0, end + 2);
  reply.body = bytes.substr(end + 4);
  if (reply.head.find("chunked") == std::string::npos) return reply;
  std::string body;
  size_t at = 0;
  while (at < reply.body.size()) {
    const size_t size = std::strtoul(reply.body.c_str() + at, nullptr, 16);
    if (size == 0) break;
    at = reply.body.find("\r\n", at) + 2;
    body += reply.body.substr(at, size);
    at += size + 2;
  }
  reply.body = std::move(body);
  return reply;
}

// One request on a connection of its own. `headers` are whole lines.
inline HttpReply Fetch(uint16_t port, const std::string& method, const std::string& path,
                       const std::string& body = "", const std::string& headers = "",
                       const ClientTls* tls = nullptr) {
  RawClient client(port, tls);
  client.Send(method + " " + path + " HTTP/1.1\r\nHost: test\r\nConnection: close\r\n" + headers +
              "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body);
  return ParseReply(client.ReadAll());
}

}  // namespace plumbline
