#include "coordinator/api/http_connection.h"

#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>
#include <chrono>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "coordinator/api/http_framing.h"
#include "coordinator/api/http_stream.h"

namespace plumbline {
namespace asio = boost::asio;
namespace http = boost::beast::http;
using asio::ip::tcp;
using boost::system::error_code;

namespace {

constexpr size_t kReadBytes = 8 << 10;
constexpr auto kLingerTime = std::chrono::seconds(2);

// One client. Members without a lock belong to the socket's strand.
class HttpConnection final : public HttpClient,
                             public std::enable_shared_from_this<HttpConnection> {
 public:
  HttpConnection(std::shared_ptr<HttpCore> core, tcp::socket socket)
      : core_(std::move(core)),
        stream_(std::move(socket), core_->tls.get()),
        read_timer_(stream_.get_executor()),
        write_timer_(stream_.get_executor()) {}

  HttpCore& core() { return *core_; }

  void Begin() {
    asio::post(stream_.get_executor(), [self = shared_from_this()] {
      if (self->stream_.is_encrypted()) return self->Handshake();
      self->WaitForRequest();
    });
  }

  // One attempt to say why; the connection was not added to the core. Over TLS there is no word
  // before a handshake.
  void TurnAway() {
    if (stream_.is_encrypted()) return;
    HttpResponse response = core_->handler->ErrorResponse(503, "too many connections");
    response.headers.push_back({"Retry-After", "1"});
    const std::string bytes = framing_.WholeHead(response) + response.body;
    error_code ignored;
    stream_.socket().non_blocking(true, ignored);
    stream_.socket().write_some(asio::buffer(bytes), ignored);
  }

  void CloseIfIdle() override {
    asio::post(stream_.get_executor(), [self = shared_from_this()] {
      if (self->state_ == State::kIdle) self->Close();
    });
  }

  // Does nothing once closed: the server's threads may be gone.
  void Drop() override {
    const std::lock_guard lock(mutex_);
    DropLocked();
  }

  // ---- called by responders, from any thread ----

  // Queues bytes of the current response. False when the client is gone.
  bool Send(std::string bytes, bool is_last, bool is_bounded) {
    const std::lock_guard lock(mutex_);
    if (gone_) return false;
    waiting_bytes_ += bytes.size();
    if (is_bounded && waiting_bytes_ > static_cast<size_t>(core_->options.max_buffered_bytes)) {
      gone_ = true;
      DropLocked();
      return false;
    }
    waiting_ += bytes;
    response_complete_ |= is_last;
    if (!write_posted_) {
      write_posted_ = true;
      asio::post(stream_.get_executor(), [self = shared_from_this()] { self->WriteWaiting(); });
    }
    return true;
  }

  void OnCancel(std::function<void()> callback) {
    {
      const std::lock_guard lock(mutex_);
      if (!closed_) {
        if (!response_complete_) on_cancel_ = std::move(callback);
        return;
      }
    }
    callback();
  }

  // ---- composing a response; called by the responder of the current request ----

  void RespondWhole(const HttpResponse& response) {
    std::string bytes = framing_.WholeHead(response);
    if (!is_head_request_) bytes += response.body;
    Send(std::move(bytes), true, false);
  }

  const HttpFraming& framing() const { return framing_; }

  // Nothing may follow a stream that has no marked end.
  void EndsConnection() {
    const std::lock_guard lock(mutex_);
    if (!framing_.has_chunks()) keep_alive_ = false;
  }

 private:
  enum class State { kIdle, kReading, kBusy, kLingering, kClosed };

  // Whoever does not speak TLS fails here.
  void Handshake() {
    if (core_->stopping()) return Close();
    Arm(core_->options.read_timeout);
    stream_.async_handshake([self = shared_from_this()](error_code error) {
      if (error) return self->Close();
      self->WaitForRequest();
    });
  }

  void WaitForRequest() {
    if (core_->stopping()) return Close();
    state_ = State::kIdle;
    if (buffer_.size() > 0) return ReadHeader();
    Arm(core_->options.idle_timeout);
    ReadSome();
  }

  void DropLocked() {
    if (closed_) return;
    asio::post(stream_.get_executor(), [self = shared_from_this()] { self->Close(); });
  }

  // One timer for the reading side: idle, slow request, linger.
  void Arm(absl::Duration timeout) {
    read_timer_.expires_after(absl::ToChronoMilliseconds(timeout));
    read_timer_.async_wait([self = shared_from_this()](error_code cancelled) {
      if (!cancelled) self->OnReadTimeout();
    });
  }

  void OnReadTimeout() {
    if (read_timer_.expiry() > std::chrono::steady_clock::now()) return;  // armed anew meanwhile
    if (state_ == State::kReading) {
      timed_out_ = true;
      error_code ignored;
      stream_.socket().cancel(ignored);  // the pending read ends and answers 408
    } else if (state_ == State::kIdle || state_ == State::kLingering) {
      Close();
    }
  }

  // Reads whatever comes: the next request, or while a response is under way the news that the
  // client is gone. Not called with bytes in the buffer, which belong to a request sent ahead.
  void ReadSome() {
    if (read_pending_) return;
    read_pending_ = true;
    stream_.async_read_some(
        buffer_.prepare(kReadBytes),
        [self = shared_from_this(), begun_in = state_](error_code error, size_t size) {
          self->read_pending_ = false;
          if (error) return self->OnReadError(begun_in);
          self->buffer_.commit(size);
          if (self->state_ == State::kIdle) return self->ReadHeader();
          if (self->state_ == State::kLingering) {
            self->buffer_.consume(self->buffer_.size());
            self->ReadSome();
          }
        });
  }

  void OnReadError(State begun_in) {
    const bool has_ended_since = state_ == State::kLingering && begun_in != State::kLingering;
    if (has_ended_since && stream_.is_encrypted())
      return;  // TLS has ended; EndSending takes what still comes
    Close();
  }

  void ReadHeader() {
    state_ = State::kReading;
    timed_out_ = false;
    Arm(core_->options.read_timeout);
    parser_.emplace();
    parser_->header_limit(static_cast<uint32_t>(core_->options.max_header_bytes));
    parser_->body_limit(static_cast<uint64_t>(core_->options.max_body_bytes));
    http::async_read_header(stream_, buffer_, *parser_,
                            [self = shared_from_this()](error_code error, size_t) {
                              if (error) return self->Refuse(error);
                              self->ReadBody();
                            });
  }

  void ReadBody() {
    if (state_ == State::kClosed) return;
    const std::string expect(parser_->get()[http::field::expect]);
    if (absl::EqualsIgnoreCase(expect, "100-continue")) {
      Send("HTTP/1.1 100 Continue\r\n\r\n", false, false);
    }
    http::async_read(stream_, buffer_, *parser_,
                     [self = shared_from_this()](error_code error, size_t) {
                       if (error) return self->Refuse(error);
                       self->Dispatch();
                     });
  }

  // Answers a request that could not be read, then closes.
  void Refuse(error_code error) {
    if (state_ == State::kClosed) return;
    read_timer_.cancel();
    int status = 400;
    std::string message = absl::StrCat("malformed HTTP request: ", error.message());
    if (timed_out_) {
      status = 408;
      message = absl::StrCat("the request did not arrive within ",
                             absl::FormatDuration(core_->options.read_timeout));
    } else if (error == http::error::body_limit) {
      status = 413;
      message = absl::StrCat("the body is larger than ", core_->options.max_body_bytes, " bytes");
    } else if (error == http::error::header_limit || error == http::error::buffer_overflow) {
      status = 431;
      message =
          absl::StrCat("the header is larger than ", core_->options.max_header_bytes, " bytes");
    } else if (error.category() != http::make_error_code(http::error::bad_method).category() ||
               error == http::error::end_of_stream || error == http::error::partial_message) {
      return Close();
    }
    is_head_request_ = false;
    BeginResponse(11, false);
    RespondWhole(core_->handler->ErrorResponse(status, message));
  }

  void Dispatch();

  void BeginResponse(unsigned version, bool is_keep_alive) {
    state_ = State::kBusy;
    read_timer_.cancel();
    const std::lock_guard lock(mutex_);
    keep_alive_ = is_keep_alive && !core_->stopping();
    framing_ = {.version = version, .keep_alive = keep_alive_};
    response_complete_ = false;
  }

  // ---- writing, on the strand ----

  void WriteWaiting() {
    if (state_ == State::kClosed) return;
    {
      const std::lock_guard lock(mutex_);
      writing_.swap(waiting_);
      waiting_.clear();
    }
    written_ = 0;
    WriteSome();
  }

  void WriteSome() {
    write_timer_.expires_after(absl::ToChronoMilliseconds(core_->options.write_timeout));
    write_timer_.async_wait([self = shared_from_this()](error_code cancelled) {
      if (!cancelled && self->write_timer_.expiry() <= std::chrono::steady_clock::now()) {
        self->Close();
      }
    });
    stream_.async_write_some(asio::buffer(writing_.data() + written_, writing_.size() - written_),
                             [self = shared_from_this()](error_code error, size_t size) {
                               self->write_timer_.cancel();
                               if (error) return self->Close();
                               self->OnWritten(size);
                             });
  }

  void OnWritten(size_t size) {
    written_ += size;
    if (written_ < writing_.size()) return WriteSome();
    bool is_complete = false;
    bool is_kept = false;
    std::function<void()> done_with;  // destroyed without the lock
    {
      const std::lock_guard lock(mutex_);
      waiting_bytes_ -= writing_.size();
      if (!waiting_.empty()) {
        writing_.swap(waiting_);
        waiting_.clear();
        written_ = 0;
      } else {
        write_posted_ = false;
        writing_.clear();
        is_complete = response_complete_ && state_ == State::kBusy;
        is_kept = keep_alive_;
        if (is_complete) done_with.swap(on_cancel_);
      }
    }
    if (!writing_.empty()) return WriteSome();
    if (!is_complete) return;
    if (is_kept) return WaitForRequest();
    Linger();
  }

  // Takes what the client still sends, for a moment: closing at once would reset the connection and
  // could destroy our answer on its way (a 413, say).
  void Linger() {
    state_ = State::kLingering;
    read_timer_.expires_after(kLingerTime);
    read_timer_.async_wait([self = shared_from_this()](error_code cancelled) {
      if (!cancelled) self->Close();
    });
    buffer_.consume(buffer_.size());
    if (!stream_.is_encrypted()) return EndSending();
    stream_.async_end([self = shared_from_this()](error_code) { self->EndSending(); });
  }

  void EndSending() {
    if (state_ == State::kClosed) return;
    error_code ignored;
    stream_.socket().shutdown(tcp::socket::shutdown_send, ignored);
    ReadSome();
  }

  void Close() {
    if (state_ == State::kClosed) return;
    state_ = State::kClosed;
    std::function<void()> on_cancel;
    {
      const std::lock_guard lock(mutex_);
      gone_ = true;
      closed_ = true;
      on_cancel.swap(on_cancel_);
    }
    error_code ignored;
    stream_.socket().close(ignored);
    read_timer_.cancel();
    write_timer_.cancel();
    if (on_cancel) on_cancel();
    core_->Remove(this);
  }

  const std::shared_ptr<HttpCore> core_;  // first, so that it outlives the socket
  HttpStream stream_;
  asio::steady_timer read_timer_;
  asio::steady_timer write_timer_;
  boost::beast::flat_buffer buffer_;
  std::optional<http::request_parser<http::string_body>> parser_;
  State state_ = State::kIdle;
  bool read_pending_ = false;
  bool timed_out_ = false;
  std::string writing_;
  size_t written_ = 0;

  // Of the current request; constant between BeginResponse and the end of the response.
  HttpFraming framing_;
  bool is_head_request_ = false;

  std::mutex mutex_;
  std::string waiting_;       // not yet with the socket
  size_t waiting_bytes_ = 0;  // waiting_ and writing_
  bool write_posted_ = false;
  bool response_complete_ = false;
  bool keep_alive_ = false;
  bool gone_ = false;    // nothing more is taken from the responder
  bool closed_ = false;  // cancel callbacks have been run
  std::function<void()> on_cancel_;
};

class ConnectionResponder final : public HttpResponder {
 public:
  explicit ConnectionResponder(std::shared_ptr<HttpConnection> connection)
      : connection_(std::move(connection)) {}

  ~ConnectionResponder() override {
    if (phase_ == Phase::kUnanswered) {
      Respond(connection_->core().handler->ErrorResponse(500, "the request was not answered"));
    } else if (phase_ == Phase::kStreaming) {
      connection_->Drop();  // the client must not take a cut stream for a whole one
    }
  }

  void Respond(HttpResponse response) override {
    if (!Advance(Phase::kUnanswered, Phase::kDone)) return;
    connection_->RespondWhole(response);
  }

  void StartStream(HttpResponse response) override {
    if (!Advance(Phase::kUnanswered, Phase::kStreaming)) return;
    connection_->EndsConnection();
    std::string bytes = connection_->framing().StreamHead(response);
    if (!response.body.empty()) bytes += connection_->framing().Piece(response.body);
    connection_->Send(std::move(bytes), false, true);
  }

  bool Write(std::string_view piece) override {
    const std::lock_guard lock(mutex_);
    if (phase_ != Phase::kStreaming) return false;
    if (piece.empty()) return true;  // an empty chunk would end the stream
    return connection_->Send(connection_->framing().Piece(piece), false, true);
  }

  void Finish() override {
    if (!Advance(Phase::kStreaming, Phase::kDone)) return;
    connection_->Send(connection_->framing().LastPiece(), true, false);
  }

  void OnCancel(std::function<void()> callback) override {
    {
      const std::lock_guard lock(mutex_);
      if (phase_ == Phase::kDone) return;
    }
    connection_->OnCancel(std::move(callback));
  }

  void Post(std::function<void()> task) override { connection_->core().Post(std::move(task)); }

 private:
  enum class Phase { kUnanswered, kStreaming, kDone };

  bool Advance(Phase from, Phase to) {
    const std::lock_guard lock(mutex_);
    if (phase_ != from) return false;
    phase_ = to;
    return true;
  }

  const std::shared_ptr<HttpConnection> connection_;
  std::mutex mutex_;
  Phase phase_ = Phase::kUnanswered;
};

void HttpConnection::Dispatch() {
  if (state_ == State::kClosed) return;
  http::request<http::string_body> message = parser_->release();
  parser_.reset();
  is_head_request_ = message.method() == http::verb::head;
  BeginResponse(message.version(), message.keep_alive());
  HttpRequest request;
  request.method = std::string(message.method_string());
  const std::string target(message.target());
  const size_t question = target.find('?');
  request.path = PercentDecode(std::string_view(target).substr(0, question));
  if (question != std::string::npos) request.query = target.substr(question + 1);
  for (const auto& field : message) {
    request.headers.push_back(
        {absl::AsciiStrToLower(std::string(field.name_string())), std::string(field.value())});
  }
  request.body = std::move(message.body());
  if (buffer_.size() == 0) ReadSome();
  core_->Post([core = core_, request = std::make_shared<HttpRequest>(std::move(request)),
               responder = std::make_shared<ConnectionResponder>(shared_from_this())] {
    core->handler->Handle(std::move(*request), responder);
  });
}

}  // namespace

void StartConnection(std::shared_ptr<HttpCore> core, tcp::socket socket) {
  error_code ignored;
  socket.set_option(tcp::no_delay(true), ignored);
  auto connection = std::make_shared<HttpConnection>(core, std::move(socket));
  if (core->Add(connection.get())) {
    connection->Begin();
  } else {
    connection->TurnAway();
  }
}

}  // namespace plumbline
