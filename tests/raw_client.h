// A client of HTTP that says exactly the bytes it is told to. For tests.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <string>
#include <utility>

namespace plumbline {

class RawClient {
 public:
  explicit RawClient(uint16_t port) : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connected_ = ::connect(socket_, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
  }
  ~RawClient() { Close(); }

  bool connected() const { return connected_; }

  void Close() {
    if (socket_ >= 0) ::close(socket_);
    socket_ = -1;
  }

  void Send(const std::string& bytes) {
    size_t sent = 0;
    while (sent < bytes.size()) {
      const ssize_t n = ::send(socket_, bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
      if (n <= 0) return;
      sent += static_cast<size_t>(n);
    }
  }

  // Reads until `end` has come, or to the end of the connection when it is empty.
  std::string ReadUntil(const std::string& end) {
    while (end.empty() || received_.find(end) == std::string::npos) {
      pollfd poll_set{.fd = socket_, .events = POLLIN};
      if (::poll(&poll_set, 1, 5000) <= 0) break;
      char buffer[4096];
      const ssize_t n = ::recv(socket_, buffer, sizeof buffer, 0);
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
  int socket_;
  bool connected_;
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
                       const std::string& body = "", const std::string& headers = "") {
  RawClient client(port);
  client.Send(method + " " + path + " HTTP/1.1\r\nHost: test\r\nConnection: close\r\n" + headers +
              "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body);
  return ParseReply(client.ReadAll());
}

}  // namespace plumbline
