#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/strand.hpp>
#include <cerrno>
#include <chrono>
#include <memory>
#include <string>
#include <utility>

#include "coordinator/api/http_connection.h"
#include "coordinator/api/http_core.h"
#include "kernels/check.h"
#include "tests/fuzz/targets.h"

namespace plumbline {
namespace {

class EchoHandler final : public HttpHandler {
 public:
  void Handle(HttpRequest request, std::shared_ptr<HttpResponder> responder) override {
    if (request.path != "/stream") return responder->Respond({.body = request.path + request.body});
    responder->StartStream({.body = request.query});
    responder->Write(request.body);
    responder->Finish();
  }
  HttpResponse ErrorResponse(int status, const std::string& message) override {
    return {.status = status, .body = message};
  }
};

}  // namespace

// The connection's strand runs in this thread, over a pair of sockets without addresses. The client
// ends its side once the server has nothing more to do: it would else be gone before the first
// answer.
void FuzzHttp(std::string_view bytes) {
  static EchoHandler handler;
  static const auto core = std::make_shared<HttpCore>(
      HttpServerOptions{.num_handler_threads = 1, .max_header_bytes = 1024, .max_body_bytes = 1024},
      &handler, nullptr);
  // So that a round lasts its time, too, while only the handler's thread has something to do.
  static const auto work = boost::asio::make_work_guard(core->io);
  constexpr size_t kMaxBytes = 64 << 10;  // fits a socket's buffer
  constexpr auto kQuiet = std::chrono::microseconds(200);
  constexpr int kMaxRounds = 50'000;  // 10 s at least
  int ends[2];
  PL_CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
  PL_CHECK(send(ends[0], bytes.data(), std::min(bytes.size(), kMaxBytes), 0) >= 0);
  StartConnection(core, {boost::asio::make_strand(core->io), boost::asio::ip::tcp::v4(), ends[1]});
  std::string answer;
  int round = 0;
  while (true) {
    core->io.restart();
    if (core->io.run_one_for(kQuiet) == 0) shutdown(ends[0], SHUT_WR);
    char piece[4096];
    const ssize_t size = recv(ends[0], piece, sizeof piece, MSG_DONTWAIT);
    if (size > 0) answer.append(piece, size);
    if (size == 0 || (size < 0 && errno != EAGAIN))
      break;  // ended, or reset with bytes of ours unread
    // A client that has ended is let go at once. Counted in rounds, so that a stopped machine is no
    // failure.
    PL_CHECK(++round < kMaxRounds);
  }
  shutdown(ends[0], SHUT_WR);
  while (core->io.restart(), core->io.run_one_for(kQuiet) > 0) {
  }
  close(ends[0]);
  PL_CHECK(answer.empty() || answer.starts_with("HTTP/1.1 "));
}

}  // namespace plumbline
