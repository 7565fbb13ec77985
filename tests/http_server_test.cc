// The HTTP server over real sockets, plain and over TLS: framing, limits, time-outs, clients that
// go away, graceful stop.
#include "coordinator/api/http_server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "absl/time/clock.h"
#include "tests/raw_client.h"
#include "tests/test_certificates.h"

namespace plumbline {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

// Of the standard library alone, which the thread sanitizer sees through.
class Flag {
 public:
  void Set() {
    const std::lock_guard lock(mutex_);
    is_set_ = true;
    changed_.notify_all();
  }
  bool IsSet() { return WaitFor(std::chrono::milliseconds(0)); }
  bool WaitFor(std::chrono::milliseconds timeout) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, timeout, [this] { return is_set_; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool is_set_ = false;
};

constexpr std::chrono::seconds kLong(5);

class TestHandler : public HttpHandler {
 public:
  void Handle(HttpRequest request, std::shared_ptr<HttpResponder> responder) override {
    if (request.path == "/echo") return responder->Respond({.body = request.body});
    if (request.path == "/describe") {
      return responder->Respond({.body = request.method + " " + request.query + " " +
                                         std::string(request.Header("x-test"))});
    }
    if (request.path == "/forget") return;
    if (request.path == "/stream") {
      responder->StartStream({.content_type = "text/event-stream", .body = "one"});
      responder->Write("two");
      responder->Write("three");
      return responder->Finish();
    }
    if (request.path == "/cut") return responder->StartStream({.body = "half"});
    if (request.path == "/flood") {
      responder->OnCancel([this] { cancelled.Set(); });
      responder->StartStream({});
      const std::string piece(16 << 10, 'x');
      while (responder->Write(piece)) ++flood_pieces;
      flood_ended.Set();
      return;
    }
    if (request.path == "/wait" || request.path == "/wait-stream") {
      if (request.path == "/wait-stream") responder->StartStream({.body = "first"});
      responder->OnCancel([this] { cancelled.Set(); });
      const std::lock_guard lock(mutex);
      kept = responder;
      waiting.Set();
      return;
    }
    responder->Respond(ErrorResponse(404, "nothing there"));
  }
  HttpResponse ErrorResponse(int status, const std::string& message) override {
    return {.status = status, .body = "refused: " + message};
  }

  std::mutex mutex;
  std::shared_ptr<HttpResponder> kept;
  Flag waiting;
  Flag cancelled;
  Flag flood_ended;
  std::atomic<int> flood_pieces = 0;
};

// Every test, plain and over TLS.
class HttpServerTest : public ::testing::TestWithParam<bool> {
 protected:
  void StartServer(HttpServerOptions options = {}) {
    if (GetParam()) {
      const TestCertificates& certificates = TestCertificates::Get();
      options.tls = certificates.Identity("server", "");
      tls_ = std::make_unique<ClientTls>(certificates.Path("ca.pem"), "", "");
    }
    auto server = HttpServer::Start(options, &handler_);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  RawClient Connect() { return RawClient(server_->port(), tls_.get()); }

  TestHandler handler_;
  std::unique_ptr<HttpServer> server_;
  std::unique_ptr<ClientTls> tls_;
};

INSTANTIATE_TEST_SUITE_P(, HttpServerTest, ::testing::Bool(),
                         [](const auto& test) { return test.param ? "Tls" : "Plain"; });

TEST_P(HttpServerTest, AnswersSeveralRequestsOnOneConnection) {
  StartServer();
  RawClient client = Connect();
  for (const std::string body : {"alpha", "beta", ""}) {
    client.Send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: " + std::to_string(body.size()) +
                "\r\n\r\n" + body);
    const std::string head = client.ReadUntil("\r\n\r\n");
    EXPECT_THAT(head, StartsWith("HTTP/1.1 200 OK\r\n"));
    EXPECT_THAT(head, HasSubstr("Content-Length: " + std::to_string(body.size()) + "\r\n"));
    EXPECT_THAT(head, HasSubstr("Connection: keep-alive"));
    if (!body.empty()) {
      EXPECT_EQ(client.ReadUntil(body), body);
    }
  }
}

TEST_P(HttpServerTest, AnswersRequestsSentAhead) {
  StartServer();
  RawClient client = Connect();
  client.Send(
      "POST /echo HTTP/1.1\r\nContent-Length: 3\r\n\r\noneGET /describe?a=1 HTTP/1.1\r\n"
      "X-Test: yes\r\n\r\nGET /describe HTTP/1.1\r\nConnection: close\r\n\r\n");
  const std::string all = client.ReadAll();
  EXPECT_THAT(all, HasSubstr("\r\n\r\none"));
  EXPECT_THAT(all, HasSubstr("GET a=1 yes"));
  EXPECT_THAT(all, HasSubstr("Connection: close"));
}

TEST_P(HttpServerTest, TakesChunkedBodiesAndExpectContinue) {
  StartServer();
  RawClient client = Connect();
  client.Send(
      "POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n");
  EXPECT_THAT(client.ReadUntil("abcde"), HasSubstr("Content-Length: 5"));
  client.Send("POST /echo HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n");
  EXPECT_EQ(client.ReadUntil("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  client.Send("late");
  EXPECT_THAT(client.ReadUntil("late"), StartsWith("HTTP/1.1 200 OK"));
}

TEST_P(HttpServerTest, StreamsInChunks) {
  StartServer();
  RawClient client = Connect();
  client.Send("GET /stream HTTP/1.1\r\n\r\n");
  EXPECT_THAT(client.ReadUntil("\r\n\r\n"), HasSubstr("Transfer-Encoding: chunked"));
  EXPECT_EQ(client.ReadUntil("0\r\n\r\n"), "3\r\none\r\n3\r\ntwo\r\n5\r\nthree\r\n0\r\n\r\n");
  client.Send("GET /describe HTTP/1.1\r\n\r\n");  // the connection is still good
  EXPECT_THAT(client.ReadUntil("GET"), StartsWith("HTTP/1.1 200 OK"));
}

TEST_P(HttpServerTest, EndsStreamsToOldClientsWithTheConnection) {
  StartServer();
  RawClient client = Connect();
  client.Send("GET /stream HTTP/1.0\r\n\r\n");
  const std::string all = client.ReadAll();
  EXPECT_THAT(all, Not(HasSubstr("chunked")));
  EXPECT_THAT(all, HasSubstr("\r\n\r\nonetwothree"));
}

TEST_P(HttpServerTest, AnswersHeadWithoutABody) {
  StartServer();
  RawClient client = Connect();
  client.Send("HEAD /describe HTTP/1.1\r\nConnection: close\r\n\r\n");
  const std::string all = client.ReadAll();
  EXPECT_THAT(all, HasSubstr("Content-Length: 6\r\n"));
  EXPECT_TRUE(all.ends_with("\r\n\r\n")) << all;
}

TEST_P(HttpServerTest, RefusesWhatIsTooLargeOrMalformed) {
  StartServer({.max_header_bytes = 1000, .max_body_bytes = 1000});
  const auto answer = [this](const std::string& bytes) {
    RawClient client = Connect();
    client.Send(bytes);
    return client.ReadAll();
  };
  // The whole body is on its way when the answer comes, and the answer must still arrive.
  EXPECT_THAT(answer("POST /echo HTTP/1.1\r\nContent-Length: 4000000\r\n\r\n" +
                     std::string(4'000'000, 'x')),
              StartsWith("HTTP/1.1 413 "));
  EXPECT_THAT(answer("POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n7d0\r\n" +
                     std::string(2000, 'x') + "\r\n0\r\n\r\n"),
              StartsWith("HTTP/1.1 413 "));
  EXPECT_THAT(answer("GET / HTTP/1.1\r\nX: " + std::string(2000, 'x') + "\r\n\r\n"),
              StartsWith("HTTP/1.1 431 "));
  EXPECT_THAT(answer("nonsense\r\n\r\n"), StartsWith("HTTP/1.1 400 "));
  EXPECT_THAT(answer("POST /echo HTTP/1.1\r\nContent-Length: -3\r\n\r\n"),
              StartsWith("HTTP/1.1 400 "));
}

// Whatever a client announces or sends, no more than the limit is read into memory.
TEST_P(HttpServerTest, RefusesAGigabyteWithoutTakingIt) {
  StartServer({.max_body_bytes = 1 << 20});
  RawClient announced = Connect();
  announced.Send("POST /echo HTTP/1.1\r\nContent-Length: 1073741824\r\n\r\n");
  EXPECT_THAT(announced.ReadAll(), StartsWith("HTTP/1.1 413 "));
  RawClient one_chunk = Connect();
  one_chunk.Send("POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n40000000\r\nxxxx");
  EXPECT_THAT(one_chunk.ReadUntil("\r\n"), StartsWith("HTTP/1.1 413 "));
  // In small chunks there is no total: the answer comes behind the limit, while the client is still
  // sending.
  RawClient chunked = Connect();
  chunked.Send("POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n");
  const std::string chunk = "10000\r\n" + std::string(64 << 10, 'x') + "\r\n";
  for (int i = 0; i < 32; ++i) chunked.Send(chunk);  // 2 MiB
  EXPECT_THAT(chunked.ReadUntil("\r\n"), StartsWith("HTTP/1.1 413 "));
  const absl::Time deadline = absl::Now() + absl::Seconds(10);
  while (absl::Now() < deadline && chunked.Send(chunk)) {
  }
  EXPECT_LT(absl::Now(), deadline) << "the server hangs on to a client that goes on sending";
  RawClient next = Connect();
  next.Send("GET /describe HTTP/1.1\r\n\r\n");
  EXPECT_THAT(next.ReadUntil("GET"), StartsWith("HTTP/1.1 200"));
}

TEST_P(HttpServerTest, TimesOutSlowRequestsAndIdleConnections) {
  StartServer({.idle_timeout = absl::Milliseconds(300), .read_timeout = absl::Milliseconds(100)});
  RawClient slow = Connect();
  slow.Send("POST /echo HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc");
  EXPECT_THAT(slow.ReadAll(), StartsWith("HTTP/1.1 408 "));
  RawClient slow_header = Connect();
  slow_header.Send("POST /ec");
  EXPECT_THAT(slow_header.ReadAll(), StartsWith("HTTP/1.1 408 "));
  RawClient idle = Connect();
  EXPECT_EQ(idle.ReadAll(), "");
}

TEST_P(HttpServerTest, RefusesMoreConnectionsThanAllowed) {
  StartServer({.max_connections = 2});
  RawClient first = Connect();
  RawClient second = Connect();
  first.Send("GET /describe HTTP/1.1\r\n\r\n");
  EXPECT_THAT(first.ReadUntil("GET"), StartsWith("HTTP/1.1 200"));
  second.Send("GET /describe HTTP/1.1\r\n\r\n");
  EXPECT_THAT(second.ReadUntil("GET"), StartsWith("HTTP/1.1 200"));
  RawClient third = Connect();
  if (GetParam()) {
    EXPECT_FALSE(third.connected());  // nothing can be said before a handshake
  } else {
    EXPECT_THAT(third.ReadAll(), StartsWith("HTTP/1.1 503 "));
  }
  first.Close();
  bool is_accepted = false;
  for (int i = 0; i < 100 && !is_accepted; ++i) {
    RawClient next = Connect();
    next.Send("GET /describe HTTP/1.1\r\n\r\n");
    is_accepted = next.ReadUntil("GET").starts_with("HTTP/1.1 200");
  }
  EXPECT_TRUE(is_accepted);
}

TEST_P(HttpServerTest, NoticesAClientThatLeavesWhileItWaits) {
  StartServer();
  RawClient client = Connect();
  client.Send("GET /wait HTTP/1.1\r\n\r\n");
  ASSERT_TRUE(handler_.waiting.WaitFor(kLong));
  EXPECT_FALSE(handler_.cancelled.WaitFor(std::chrono::milliseconds(100)));
  client.Close();
  EXPECT_TRUE(handler_.cancelled.WaitFor(kLong));
  handler_.kept->Respond({});  // too late, and harmless
}

TEST_P(HttpServerTest, NoticesAClientThatLeavesAStream) {
  StartServer();
  RawClient client = Connect();
  client.Send("GET /wait-stream HTTP/1.1\r\n\r\n");
  client.ReadUntil("first");
  ASSERT_TRUE(handler_.waiting.WaitFor(kLong));
  EXPECT_TRUE(handler_.kept->Write("second"));
  client.ReadUntil("second");
  client.Close();
  EXPECT_TRUE(handler_.cancelled.WaitFor(kLong));
  EXPECT_FALSE(handler_.kept->Write("third"));
}

TEST_P(HttpServerTest, DropsAReaderThatDoesNotRead) {
  StartServer({.max_buffered_bytes = 64 << 10});
  RawClient client = Connect();
  client.Send("GET /flood HTTP/1.1\r\n\r\n");
  EXPECT_TRUE(handler_.flood_ended.WaitFor(kLong));
  EXPECT_TRUE(handler_.cancelled.WaitFor(kLong));
}

TEST_P(HttpServerTest, DropsAClientThatTakesNothingForTooLong) {
  StartServer({.max_body_bytes = 64 << 20, .write_timeout = absl::Milliseconds(300)});
  RawClient client = Connect();
  const std::string body(48 << 20, 'x');  // more than the sockets hold
  client.Send("POST /echo HTTP/1.1\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n" +
              body);
  const size_t num_read = client.ReadUntil("\r\n\r\n").size();  // from here on the server writes
  ASSERT_GT(num_read, 0u);
  absl::SleepFor(absl::Seconds(1));
  EXPECT_LT(num_read + client.ReadAll().size(), body.size());
}

TEST_P(HttpServerTest, NeitherHangsNorLiesWhenAHandlerForgets) {
  StartServer();
  RawClient client = Connect();
  client.Send("GET /forget HTTP/1.1\r\n\r\n");
  EXPECT_THAT(client.ReadUntil("\r\n\r\n"), StartsWith("HTTP/1.1 500 "));
  RawClient cut = Connect();
  cut.Send("GET /cut HTTP/1.1\r\n\r\n");
  EXPECT_THAT(cut.ReadAll(), Not(HasSubstr("0\r\n\r\n")));  // no end mark: not a whole answer
}

TEST_P(HttpServerTest, FinishesResponsesBeforeItStops) {
  StartServer();
  RawClient idle = Connect();
  RawClient client = Connect();
  client.Send("GET /wait HTTP/1.1\r\n\r\n");
  ASSERT_TRUE(handler_.waiting.WaitFor(kLong));
  std::thread stopper([this] { server_->Stop(absl::Now() + absl::Seconds(10)); });
  EXPECT_EQ(idle.ReadAll(), "");
  EXPECT_FALSE(Connect().connected());
  handler_.kept->Respond({.body = "done"});
  EXPECT_THAT(client.ReadAll(), HasSubstr("done"));
  stopper.join();
  EXPECT_FALSE(handler_.cancelled.IsSet());
}

TEST_P(HttpServerTest, StopsAtTheDeadlineAndResponderOutlivesIt) {
  StartServer();
  RawClient client = Connect();
  client.Send("GET /wait HTTP/1.1\r\n\r\n");
  ASSERT_TRUE(handler_.waiting.WaitFor(kLong));
  server_->Stop(absl::Now() + absl::Milliseconds(50));
  EXPECT_TRUE(handler_.cancelled.IsSet());
  server_.reset();
  handler_.kept->Respond({.body = "nobody reads this"});
  handler_.kept->Post([] { ADD_FAILURE() << "ran after the server had stopped"; });
}

TEST_P(HttpServerTest, NamesAnAddressThatIsTaken) {
  StartServer();
  HttpServerOptions options;
  options.port = server_->port();
  const auto second = HttpServer::Start(options, &handler_);
  ASSERT_FALSE(second.ok());
  EXPECT_THAT(std::string(second.status().message()),
              HasSubstr("127.0.0.1:" + std::to_string(server_->port())));
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("in use"));
}

}  // namespace
}  // namespace plumbline
